"""The section of a config that says where it runs. No torch."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pretrain.config.section import PositiveInt, Section

ShellWord = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:@/,=+\[\]-]+$")]


class ClusterConfig(Section):
    """Where it runs. Site facts come from ``configs/clusters/NAME.yaml``."""

    executor: Literal["slurm", "local"] = "local"
    """submitit's executor."""
    nodes: PositiveInt = 1
    """Machines; the local executor always takes 1."""
    gpus_per_node: Annotated[int, Field(ge=0)] | None = None
    """GPUs of a node; null counts those of this machine when running locally."""
    ranks_per_node: PositiveInt | None = None
    """Processes of a node; null is one per GPU, or one without GPUs."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto takes GPUs where there are any."""
    cpus_per_rank: PositiveInt | None = None
    """CPU cores of each rank; null leaves it to Slurm."""
    memory_gib_per_node: PositiveInt | None = None
    """Memory of a node; null takes the site's default."""
    time_limit_minutes: PositiveInt | None = None
    """Longest life of one job; null takes the partition's default."""
    partition: ShellWord | None = None
    """Slurm partition."""
    account: ShellWord | None = None
    """Slurm account."""
    qos: ShellWord | None = None
    """Slurm quality of service."""
    constraint: ShellWord | None = None
    """Slurm node feature."""
    exclude: ShellWord | None = None
    """Nodes not to use, in Slurm's list syntax."""
    setup: tuple[str, ...] = ()
    """Shell lines run before the job, such as ``module load``: written by the site, trusted."""
    signal_lead_seconds: Annotated[int, Field(ge=1, le=65535)] = 180
    """How long before the time limit Slurm tells the ranks to save, seconds; at least twice what a
    save takes."""
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

    @model_validator(mode="after")
    def check_setup(self) -> Self:
        """Refuse set-up lines that hold several lines."""
        for line in self.setup:
            if any(ord(character) < 32 for character in line):
                raise ValueError(f"setup: expected one line per entry, got {line!r}")
        return self
