"""The section of a config that says where it runs. No torch."""

import re
import shlex
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pretrain.config.section import NonNegativeInt, PositiveInt, Section
from pretrain.credentials import credential_in

SIGNAL_MARGIN_SECONDS = 60
"""Slurm sends the signal up to this much early."""
OWN_SBATCH_OPTIONS = {
    "array", "begin", "chdir", "clusters", "cpus-per-task", "dependency", "error",
    "get-user-env", "gpus", "help", "hold", "input", "job-name", "kill-on-invalid-dep",
    "nodes", "no-requeue", "ntasks", "ntasks-per-gpu", "ntasks-per-node", "open-mode",
    "output", "parsable", "quiet", "requeue", "signal", "test-only", "tres-per-task",
    "usage", "verbose", "version", "wait", "wrap",
}  # fmt: skip
"""Options of ``sbatch`` that the launcher decides, or that change what ``sbatch`` itself does."""
OWN_SRUN_OPTIONS = {
    "bcast", "chdir", "container-image", "container-mounts", "container-workdir",
    "cpus-per-task", "error", "het-group", "immediate", "input", "job-name", "jobid",
    "kill-on-bad-exit", "label", "multi-prog", "nodes", "ntasks", "ntasks-per-node",
    "open-mode", "output", "overlap", "pty", "quit-on-interrupt", "relative", "signal",
    "test-only", "wait",
}  # fmt: skip
"""Options of ``srun`` that the launcher decides: ranks are counted, logged and killed by them."""


def _plain_text(text: str) -> str:
    """Printable ASCII without what Slurm's and the shell's quoting treat differently."""
    if not text or any(not " " <= character <= "~" for character in text):
        raise ValueError(f"expected printable ASCII characters, got {text!r}")
    if any(character in "'\"\\`$" for character in text) or text != text.strip():
        raise ValueError(f"expected no quotes, '\\', '`', '$' or outer spaces, got {text!r}")
    leak = credential_in(text)
    if leak:
        raise ValueError(f"holds {leak}, which would be written into the run directory")
    return text


def _setup_line(line: str) -> str:
    if any(ord(character) < 32 or not character.isprintable() for character in line):
        raise ValueError(f"expected one line per entry, printable, got {line!r}")
    if not line.strip() or line.lstrip().startswith("#"):
        raise ValueError(f"expected a command, got {line!r}; comments belong beside it in the file")
    try:
        shlex.split(line, comments=True)
    except ValueError as error:
        raise ValueError(f"expected a whole command, got {line!r}: {error}") from None
    if line.endswith("\\") or "<<" in line.replace("<<<", ""):
        raise ValueError(f"expected a command that ends on its line, got {line!r}")
    leak = credential_in(line)
    if leak:
        raise ValueError(
            f"holds {leak}, which would be written into the script and the run directory; "
            "read it from a file: export NAME=$(cat FILE)"
        )
    return line


def _srun_argument(argument: str) -> str:
    match = re.fullmatch(r"--([a-z][a-z0-9-]*)(=.*)?", argument, re.DOTALL)
    if not match:
        raise ValueError(f"expected --option or --option=value, got {argument!r}")
    if match[1] in OWN_SRUN_OPTIONS:
        raise ValueError(f"--{match[1]} is set by the launcher, or by a field of its own")
    if match[2]:
        _plain_text(match[2][1:])
    return argument


def _option_value(value: object) -> object:
    if not isinstance(value, bool | int | str):
        raise ValueError(f"expected text, a whole number or true, got {value!r}")
    return _plain_text(value) if isinstance(value, str) else value


def _matching(pattern: str, expected: str) -> AfterValidator:
    """A validator of text that must match as a whole, told in words."""
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(f"expected {expected}, got {text!r}")
        return text

    return AfterValidator(check)


_WORD = r"[A-Za-z0-9_][A-Za-z0-9._@+-]*"
_PATH = r"[A-Za-z0-9_./@+=~-]+"
_LETTERS = "letters, digits, '.', '_', '-', '@' or '+'"
Word = Annotated[str, Field(max_length=200), _matching(_WORD, f"a name of {_LETTERS}")]
Words = Annotated[
    str,
    Field(max_length=1000),
    _matching(rf"{_WORD}(,{_WORD})*", f"names of {_LETTERS}, with commas between"),
]
NodeList = Annotated[
    str,
    Field(max_length=4000),
    _matching(r"[A-Za-z0-9_][A-Za-z0-9._,\[\]-]*", "node names such as n[1-4,7]"),
]
Constraint = Annotated[
    str,
    Field(max_length=1000),
    _matching(
        r"[A-Za-z0-9_(\[][A-Za-z0-9._&|()\[\]*:,=-]*", "node features such as a100|h100, no spaces"
    ),
]
MailUser = Annotated[
    str,
    Field(max_length=500),
    _matching(r"[A-Za-z0-9][A-Za-z0-9._+@-]*(,[A-Za-z0-9][A-Za-z0-9._+@-]*)*", "a mail address"),
]
MailType = Literal[
    "NONE",
    "BEGIN",
    "END",
    "FAIL",
    "REQUEUE",
    "ALL",
    "INVALID_DEPEND",
    "STAGE_OUT",
    "TIME_LIMIT",
    "TIME_LIMIT_90",
    "TIME_LIMIT_80",
    "TIME_LIMIT_50",
    "ARRAY_TASKS",
]
PlainText = Annotated[str, Field(max_length=1000), AfterValidator(_plain_text)]
OptionValue = Annotated[str | bool | int, BeforeValidator(_option_value)]
SetupLine = Annotated[str, Field(max_length=4000), AfterValidator(_setup_line)]
SrunArgument = Annotated[str, Field(max_length=1000), AfterValidator(_srun_argument)]
ContainerImage = Annotated[
    str,
    Field(max_length=1000),
    _matching(
        r"[A-Za-z0-9_./~][A-Za-z0-9_./:#@+=~-]*", "an image such as HOST#IMAGE:TAG or a file"
    ),
]
ContainerMount = Annotated[
    str,
    Field(max_length=2000),
    _matching(rf"{_PATH}:{_PATH}(:[a-z+]+)?", "SOURCE:TARGET or SOURCE:TARGET:FLAGS"),
]
ContainerPython = Annotated[
    str, Field(max_length=1000), _matching(rf"[A-Za-z0-9_/]{_PATH}", "a program or its path")
]


class ClusterConfig(Section):
    """Where it runs. Site facts come from ``configs/clusters/NAME.yaml``.

    Text is held to the characters that its kind needs, so that nothing here can become shell or
    another option; ``setup`` alone is shell.
    """

    executor: Literal["slurm", "local"] = "local"
    """submitit's executor."""
    nodes: PositiveInt = 1
    """Machines; the local executor always takes 1."""
    gpus_per_node: NonNegativeInt | None = None
    """GPUs of a node; null counts those of this machine when running locally."""
    ranks_per_node: PositiveInt | None = None
    """Processes of a node; null is one per GPU, or one without GPUs."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto takes GPUs where there are any."""
    cpus_per_rank: PositiveInt | None = None
    """CPU cores of each rank; null leaves it to Slurm."""
    memory_gib_per_node: NonNegativeInt | None = None
    """Memory of a node, GiB; 0 takes all of it, null the site's default."""
    exclusive: bool = False
    """Share no node with other jobs."""
    time_limit_minutes: PositiveInt | None = None
    """Longest life of one job, minutes; null takes the partition's default."""
    signal_lead_seconds: Annotated[int, Field(ge=1, le=65535)] = 180
    """How long before the time limit Slurm tells the ranks to save, seconds; at least twice what a
    save takes."""
    start_budget_seconds: PositiveInt = 300
    """What a time limit must leave for starting and training besides that lead, seconds."""
    partition: Words | None = None
    """Slurm partition, or several with commas, of which Slurm takes the first that is free."""
    account: Word | None = None
    """Slurm account."""
    qos: Word | None = None
    """Slurm quality of service."""
    reservation: Words | None = None
    """Slurm reservation."""
    constraint: Constraint | None = None
    """Node features, in Slurm's syntax (``a100|h100``)."""
    nodelist: NodeList | None = None
    """Nodes that must be among those of the job, in Slurm's list syntax (``n[1-4,7]``)."""
    exclude: NodeList | None = None
    """Nodes not to use, in Slurm's list syntax."""
    comment: PlainText | None = None
    """Text kept with the job."""
    mail_type: tuple[MailType, ...] = ()
    """Events of the job that Slurm writes mail about."""
    mail_user: MailUser | None = None
    """Who gets the mail; null is the user who submits."""
    sbatch_options: dict[str, OptionValue] = Field(default_factory=dict)
    """Further options of sbatch by their long names, true for one without a value; ``_`` stands
    for ``-`` on the command line."""
    srun_arguments: tuple[SrunArgument, ...] = ()
    """Further arguments of the srun that starts the ranks, ``--option=value`` each."""
    setup: tuple[SetupLine, ...] = ()
    """Shell lines run on the first node before the job, such as ``module load``: trusted."""
    container_image: ContainerImage | None = None
    """Image in which the ranks run, as pyxis takes it: a ``.sqsh`` file or ``HOST#IMAGE:TAG``; null
    runs them on the node itself. The supervisor stays outside."""
    container_mounts: tuple[ContainerMount, ...] = ()
    """Paths of the node seen in the container, ``SOURCE:TARGET`` or ``SOURCE:TARGET:FLAGS``; those
    that the config names are mounted in any case."""
    container_python: ContainerPython = "python3"
    """The image's Python, with this project's dependencies."""
    max_attempts_without_progress: PositiveInt = 3
    """Attempts that may end badly without a newer checkpoint, or crash at one and the same step,
    before the job gives up."""
    requeue: Literal["requeue", "resubmit", "never"] = "requeue"
    """What brings a job back that its supervisor cannot go on with: ``scontrol requeue`` (another
    job where that is refused), always another job, or only a person."""
    launch_timeout_seconds: PositiveInt = 300
    """Until ``srun`` must have started every rank."""
    start_timeout_seconds: PositiveInt = 2400
    """Until the ranks must have found each other; more than
    ``engine.collective_timeout_seconds``."""

    @property
    def shortest_limit_minutes(self) -> int:
        """Shortest time limit that leaves time to train."""
        seconds = self.signal_lead_seconds + SIGNAL_MARGIN_SECONDS + self.start_budget_seconds
        return seconds // 60 + 1

    @model_validator(mode="after")
    def check_sbatch_options(self) -> Self:
        """Refuse options that are none, that the launcher decides, or that have their own field."""
        names = [name.replace("_", "-") for name in self.sbatch_options]
        for name, given in zip(names, self.sbatch_options, strict=True):
            if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > 50:
                raise ValueError(f"sbatch_options: expected an option's long name, got {given!r}")
            field = FIELD_OF_OPTION.get(name)
            if field is not None:
                raise ValueError(f"sbatch_options: {given}: give cluster.{field} instead")
            if name in OWN_SBATCH_OPTIONS:
                raise ValueError(f"sbatch_options: {given}: is decided by the launcher")
            if self.sbatch_options[given] is False:
                raise ValueError(f"sbatch_options: {given}: false says nothing; leave it out")
        if len(set(names)) < len(names):
            raise ValueError(f"sbatch_options: an option twice, got {sorted(self.sbatch_options)}")
        return self

    @model_validator(mode="after")
    def check_container(self) -> Self:
        """Refuse mounts into a container that there is none of."""
        if self.container_mounts and self.container_image is None:
            raise ValueError("container_mounts: there is no container; give container_image")
        return self


FIELD_OF_OPTION = {
    "account": "account",
    "comment": "comment",
    "constraint": "constraint",
    "container-image": "container_image",
    "container-mounts": "container_mounts",
    "exclude": "exclude",
    "exclusive": "exclusive",
    "gpus-per-node": "gpus_per_node",
    "mail-type": "mail_type",
    "mail-user": "mail_user",
    "mem": "memory_gib_per_node",
    "nodelist": "nodelist",
    "partition": "partition",
    "qos": "qos",
    "reservation": "reservation",
    "time": "time_limit_minutes",
}
"""Options of ``sbatch`` that have a field of their own."""
