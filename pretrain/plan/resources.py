"""How many ranks a run has and on what device, from the site's facts or this machine."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from pretrain.config.cluster import ClusterConfig
from pretrain.errors import ConfigError
from pretrain.world import World

_NO_DEVICE = ("", "-1", "NoDevFiles")
"""What stands for none in ``CUDA_VISIBLE_DEVICES``; the last is Slurm's word."""
_NVIDIA_DEVICES = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Resources:
    """The machines of a run: ``nodes`` of ``ranks_per_node`` processes on ``device``.

    Attributes:
        device: ``cuda`` or ``cpu``.
        nodes: number of machines.
        ranks_per_node: processes on each; one per GPU where there are GPUs.
        note: what was changed from the config to fit, or nothing.
    """

    device: str
    nodes: int
    ranks_per_node: int
    note: str = ""

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.nodes * self.ranks_per_node


def gpus_here() -> int:
    """Return the number of GPUs this process may use, without loading a driver library."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in _NO_DEVICE])
    return sum(1 for _ in _NVIDIA_DEVICES.iterdir()) if _NVIDIA_DEVICES.is_dir() else 0


def device_name_here(device: str) -> str | None:
    """Name of this machine's devices without loading a driver library.

    Args:
        device: ``cuda`` or ``cpu``.

    Returns:
        What torch calls them, for whole GPUs; None where their driver names none or several.
    """
    if device == "cpu":
        return cpu_name()
    names: set[str] = set()
    for information in _NVIDIA_DEVICES.glob("*/information"):
        lines = information.read_text(encoding="utf-8").splitlines()
        names |= {line.partition(":")[2].strip() for line in lines if line.startswith("Model:")}
    return names.pop() if len(names) == 1 else None


def cpu_name() -> str:
    """The processor by its name, where the kernel tells, else by its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def resources_of(cluster: ClusterConfig, gpus_of_this_machine: int) -> Resources:
    """Return what a launched run gets.

    The local executor takes one node and, unless told otherwise, the GPUs of this machine. Slurm
    gets what the config and its cluster file say.

    Raises:
        ConfigError: GPUs are demanded where there are none, or more ranks than GPUs.
    """
    local = cluster.executor == "local"
    gpus = cluster.gpus_per_node
    if gpus is None:
        gpus = gpus_of_this_machine if local else 0
    if local:
        gpus = min(gpus, gpus_of_this_machine)
    device = cluster.device
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device == "cuda" and not gpus:
        where = "this machine shows none" if local else "cluster.gpus_per_node is not set"
        raise ConfigError(f"cluster.device: cuda needs GPUs, but {where}; give cluster.device=cpu")
    ranks = cluster.ranks_per_node or (gpus if device == "cuda" else 1)
    if device == "cuda" and ranks > gpus:
        raise ConfigError(
            f"cluster.ranks_per_node: {ranks} ranks need as many GPUs, a node has {gpus}; "
            f"give cluster.ranks_per_node={gpus}"
        )
    note = f"{cluster.nodes} nodes asked for, 1 taken: this machine" if cluster.nodes > 1 else ""
    return Resources(
        device=device,
        nodes=1 if local else cluster.nodes,
        ranks_per_node=ranks,
        note=note if local else "",
    )


def resources_of_world(world: World, cluster: ClusterConfig, gpus_of_this_node: int) -> Resources:
    """Return what the processes already started amount to (alone, under torchrun or ``srun``).

    Raises:
        ConfigError: this node shows GPUs, or the config demands them, but fewer than its ranks.
    """
    device = cluster.device
    if device == "auto":
        device = "cuda" if gpus_of_this_node else "cpu"
    if device == "cuda" and gpus_of_this_node < world.local_size:
        raise ConfigError(
            f"cluster.device: cuda needs a GPU for each of the {world.local_size} ranks of this "
            f"node, which shows {gpus_of_this_node} to each; start fewer ranks, let each see all "
            "GPUs, or give cluster.device=cpu"
        )
    return Resources(
        device=device,
        nodes=max(1, world.size // world.local_size),
        ranks_per_node=world.local_size,
    )
