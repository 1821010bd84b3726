"""The sbatch script of a job, rendered by submitit; every value of it is validated or quoted."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from launch.container import paths_of
from launch.supervise.nodes import excluded_nodes
from pretrain.config.cluster import SIGNAL_MARGIN_SECONDS, ClusterConfig
from pretrain.config.schema import RunConfig
from pretrain.credentials import secrets_of
from pretrain.errors import LaunchError
from pretrain.run_directory import RunDirectory

if TYPE_CHECKING:
    from submitit import SlurmExecutor

_VARIABLE_OF = {
    "array": "ARRAY_INX",
    "mem": "MEM_PER_NODE",
    "switches": "REQ_SWITCH",
    "time": "TIMELIMIT",
}
"""Options whose ``SBATCH_`` variable has another name."""
_NEVER_FROM_OUTSIDE = (
    *("ARRAY_INX", "CLUSTERS", "ERROR", "GET_USER_ENV", "INPUT", "NO_REQUEUE", "WAIT"),
)
_OF_THE_CLUSTER = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")


@dataclass(frozen=True)
class JobSpec:
    """Everything that an sbatch script says.

    Attributes:
        name: of the job.
        folder: submitit's, which holds the script and the log.
        directory: where the job starts: the copy of the source that its supervisor executes.
        ranks_per_node: processes on each node.
        cluster: the site's facts and the user's wishes.
        excluded: nodes not to use besides ``cluster.exclude``.
        after: jobs that must succeed first; if one fails, this one is removed.
        follows: a job that must have ended first, in whatever way; None for none.
        elements: number of supervisors of a job array; None for a plain job.
        concurrent: most elements that run at a time; None for all.
    """

    name: str
    folder: Path
    directory: Path
    ranks_per_node: int
    cluster: ClusterConfig
    excluded: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    follows: str | None = None
    elements: int | None = None
    concurrent: int | None = None


def spec_of(
    run: RunDirectory,
    config: RunConfig,
    ranks_per_node: int,
    after: Sequence[str] = (),
    follows: str | None = None,
) -> JobSpec:
    """The job of a single run, off the nodes that it does not take any more."""
    return JobSpec(
        name=config.name,
        folder=run.submitit_dir,
        directory=run.code_path,
        ranks_per_node=ranks_per_node,
        cluster=config.cluster,
        excluded=tuple(excluded_nodes(run)),
        after=tuple(after),
        follows=follows,
    )


def slurm_executor(spec: JobSpec) -> "SlurmExecutor":
    """Make submitit's executor for a job. Writes nothing.

    Raises:
        LaunchError: Slurm's programs are not on PATH.
    """
    from submitit import SlurmExecutor

    try:
        # exec: the batch process itself must be the supervisor, or Slurm kills only the shell.
        executor = SlurmExecutor(spec.folder, python=f"exec {shlex.quote(sys.executable)}")
    except RuntimeError as error:
        raise LaunchError(f"cluster.executor: slurm: {error}") from None
    executor.update_parameters(**_parameters(spec))
    return executor


def render(spec: JobSpec) -> str:
    """The script that would be submitted. Writes nothing.

    Raises:
        LaunchError: Slurm's programs are not on PATH.
    """
    executor = slurm_executor(spec)
    if spec.elements is not None and spec.elements > 1:  # as submitit itself does for an array
        executor.parameters["map_count"] = spec.elements
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def submission_environment(script: str, environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which ``sbatch`` does what a script says.

    Without a surrounding allocation, whose shape the job would take, and without variables that
    would beat the script: sbatch takes ``SBATCH_PARTITION`` before ``#SBATCH --partition``.
    """
    said = re.findall(r"^#SBATCH --([a-z-]+)", script, re.MULTILINE)
    names = [_VARIABLE_OF.get(option, option.upper().replace("-", "_")) for option in said]
    beating = {f"SBATCH_{name}" for name in (*names, *_NEVER_FROM_OUTSIDE)}
    return {
        name: value
        for name, value in environment.items()
        if name not in beating and (not name.startswith("SLURM_") or name in _OF_THE_CLUSTER)
    }


def sbatch_script(config: RunConfig, ranks_per_node: int, after: Sequence[str] = ()) -> str:
    """The script of a single run's job. Writes nothing."""
    run = RunDirectory(Path(config.runs_dir) / config.name)
    return render(spec_of(run, config, ranks_per_node, after))


class Answer(NamedTuple):
    """What ``sbatch --test-only`` says of a script.

    Attributes:
        accepted: whether Slurm would take it.
        text: an estimated start, or the refusal.
    """

    accepted: bool
    text: str


def ask_slurm(script: str) -> Answer:
    """Ask ``sbatch --test-only`` about a script. Submits nothing."""
    answer = subprocess.run(
        ["sbatch", "--test-only"],
        input=script,
        env=submission_environment(script, os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    return Answer(answer.returncode == 0, last_line(answer.stdout + answer.stderr))


def check_slurm(config: RunConfig) -> None:
    """Refuse what Slurm would take amiss, or what its nodes would. Writes nothing.

    Raises:
        LaunchError: a path that an sbatch script or a container cannot take, a time limit that
            leaves no time, set-up lines that are no shell.
    """
    cluster = config.cluster
    run = RunDirectory(Path(config.runs_dir) / config.name)
    path = str(run.path)
    if not path.isprintable() or any(character in "%\\'\"" for character in path):
        raise LaunchError(
            f"runs_dir: {path!r}: an sbatch script cannot hold control characters, quotes, "
            "backslashes or '%' in a path; give runs_dir=PATH"
        )
    limit, shortest = cluster.time_limit_minutes, cluster.shortest_limit_minutes
    if limit is not None and limit < shortest:
        raise LaunchError(
            f"cluster.time_limit_minutes: expected at least {shortest} (ranks are told to save "
            f"{cluster.signal_lead_seconds} s before the end, Slurm may do so "
            f"{SIGNAL_MARGIN_SECONDS} s early, and cluster.start_budget_seconds is "
            f"{cluster.start_budget_seconds}), got {limit}"
        )
    if cluster.container_image is not None:
        for needed in paths_of(config, run):
            if any(character in ":, \t" for character in str(needed)):
                raise LaunchError(
                    f"cluster.container_image: {str(needed)!r} cannot be mounted: it holds a "
                    "space, ':' or ','"
                )
    check_setup(cluster)


def check_setup(cluster: ClusterConfig) -> None:
    """Refuse set-up lines that bash cannot parse. Runs none of them.

    Raises:
        LaunchError: with what bash says.
    """
    if not cluster.setup:
        return
    text = "\n".join([*cluster.setup, "exec true", ""])
    answer = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    if answer.returncode != 0 or answer.stderr:
        raise LaunchError(f"cluster.setup: bash cannot parse it: {last_line(answer.stderr)}")


def check_no_secrets(config: RunConfig, environment: Mapping[str, str]) -> None:
    """Refuse a config that holds the value of a variable that looks like a credential.

    Raises:
        LaunchError: naming the variable, not its value.
    """
    text = config.model_dump_json()
    for name, value in secrets_of(environment).items():
        if value in text:
            raise LaunchError(
                f"the config holds the value of ${name}, which would be written into the run "
                "directory; jobs get the variable itself from your environment"
            )


def last_line(text: str) -> str:
    """The last line that says anything."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no message")


def _parameters(spec: JobSpec) -> dict[str, Any]:
    """What submitit is told; None leaves the matter to the site."""
    cluster = spec.cluster
    memory = cluster.memory_gib_per_node
    excluded = [*filter(None, [cluster.exclude]), *spec.excluded]
    return {
        "job_name": spec.name,
        "nodes": cluster.nodes,
        "ntasks_per_node": spec.ranks_per_node,
        "gpus_per_node": None if cluster.device == "cpu" else cluster.gpus_per_node or None,
        "cpus_per_task": cluster.cpus_per_rank,
        "mem": None if memory is None else f"{memory}G",
        "exclusive": cluster.exclusive or None,
        "time": cluster.time_limit_minutes,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "nodelist": cluster.nodelist,
        "exclude": ",".join(excluded) or None,
        "comment": cluster.comment,
        "mail_type": ",".join(cluster.mail_type) or None,
        "mail_user": cluster.mail_user,
        "setup": list(cluster.setup) or None,
        "dependency": _dependency(spec),
        "array_parallelism": spec.concurrent or spec.elements or 1,
        "signal_delay_s": cluster.signal_lead_seconds,
        "stderr_to_stdout": True,
        "use_srun": False,
        "wckey": None,
        "additional_parameters": _additional(spec),
    }


def _dependency(spec: JobSpec) -> str | None:
    if spec.follows is not None:
        return f"afterany:{spec.follows}"
    return "afterok:" + ":".join(spec.after) if spec.after else None


def _additional(spec: JobSpec) -> dict[str, Any]:
    """Options that submitit has no name for."""
    options: dict[str, Any] = {
        # Requeueing must be asked for where the site's default forbids it.
        "no-requeue" if spec.cluster.requeue == "never" else "requeue": True,
        "chdir": str(spec.directory),
        "kill-on-invalid-dep": "yes",
    }
    if spec.cluster.reservation is not None:
        options["reservation"] = spec.cluster.reservation
    for name, value in spec.cluster.sbatch_options.items():
        options[name.replace("_", "-")] = value
    return options
