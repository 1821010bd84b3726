"""What must hold before anything is queued or written: refused here, or warned about. No torch."""

import re
import sys
import tomllib
from collections.abc import Collection, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from launch.build_data import check_build
from launch.partitions import Partition, check_partition, read_partitions
from launch.planning import Part, plan_part, run_of
from launch.scheduler import why_no_slurm
from launch.script import ask_slurm, check_slurm, sbatch_script
from launch.snapshot import ROOT
from launch.status import Queue, look
from pretrain.config.schema import RunConfig
from pretrain.convert.sources import CONFIG_NAME
from pretrain.convert.targets import check_target
from pretrain.errors import LaunchError
from pretrain.files import read_json
from pretrain.plan.results import ResultsPlan, evaluated_sets
from pretrain.preflight import (
    check_initial_weights,
    check_output,
    initial_weights_path,
    manifest_if_built,
    require_manifest,
)
from pretrain.run_directory import RunDirectory
from pretrain.world import World

NODE_LOCAL = frozenset({"tmpfs", "ramfs", "overlay", "ext2", "ext3", "ext4", "xfs", "btrfs"})
"""File systems that other nodes do not see, unless the site exports them: a warning, no refusal."""


def check(configs: Sequence[RunConfig]) -> list[str]:
    """Refuse everything that cannot be launched. Writes nothing.

    Args:
        configs: the runs of one command, each after the one it starts from.

    Returns:
        Warnings: what may be meant, or may be wrong.

    Raises:
        PretrainError: in one line what is wrong, and what to do.
    """
    slurm = configs[0].cluster.executor == "slurm"
    check_packages()
    if slurm:
        why = why_no_slurm()
        if why is not None:
            raise LaunchError(f"cluster.executor: slurm: {why}; give --cluster local")
    partitions = read_partitions() if slurm else []
    warnings: list[str] = []
    earlier: set[str] = set()
    built = {config.data.path for config in configs if config.data.build_automatically}
    for config in configs:
        if slurm:
            check_slurm(config)
        part = _check_data(config, built)
        if config.init_from not in earlier:
            check_initial_weights(config)
            _check_parent(config)
        check_output(config)
        run_of(config).check(config)
        earlier.add(config.name)
        if not _needs_job(part.run):
            continue
        check_disk(part)
        warnings += compare_classes(config, configs)
        if slurm:
            warnings += _check_cluster(part, partitions)
    return list(dict.fromkeys(warnings))


def check_packages(root: Path = ROOT) -> None:
    """Refuse to launch from an environment that lacks what this source needs.

    Raises:
        LaunchError: with every package that is missing or of another version.
    """
    try:
        text = (root / "pyproject.toml").read_text(encoding="utf-8")
    except OSError:
        raise LaunchError(f"{root}: has no pyproject.toml; launch from a whole source") from None
    wrong = []
    for line in tomllib.loads(text)["project"]["dependencies"]:
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate():
            continue
        try:
            version = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{needed.name} is missing (expected {needed.specifier or 'any version'})")
            continue
        if not needed.specifier.contains(version, prereleases=True):
            wrong.append(f"{needed.name} is {version} (expected {needed.specifier})")
    if wrong:
        raise LaunchError(
            f"packages of {sys.executable}: {'; '.join(wrong)}; run: pip install -e {root}"
        )


def check_disk(part: Part) -> None:
    """Refuse a run whose checkpoints do not fit where it goes.

    Raises:
        LaunchError: with what is needed and what is free.
    """
    plan = part.plan
    if isinstance(plan, ResultsPlan):
        return
    there = _held_bytes(part.run)
    needed = plan.checkpoint_bytes * (plan.checkpoints_kept + 1) - there
    if needed > plan.free_disk_bytes:
        raise LaunchError(
            f"runs_dir: {part.run.path}: {plan.checkpoints_kept} checkpoints are kept and one is "
            f"being written, {plan.checkpoint_bytes / 2**30:.3g} GiB each: "
            f"{needed / 2**30:.3g} GiB more are needed, {plan.free_disk_bytes / 2**30:.3g} GiB are "
            "free; free some, lower checkpoint.keep_last, or give runs_dir=PATH"
        )


def compare_classes(config: RunConfig, others: Sequence[RunConfig]) -> list[str]:
    """Say how many classes of a run the weights it starts from do not know, by WordNet id.

    Args:
        config: of the run.
        others: runs of the same command, whose weights are still to come.

    Returns:
        One warning, or none; nothing where one side does not tell its classes yet.
    """
    manifest = manifest_if_built(config)
    path = initial_weights_path(config)
    if manifest is None or path is None or config.init_classes is not None:
        return []
    parent = next((other for other in others if other.name == config.init_from), None)
    known = _classes_of(path) if parent is None else _classes_learnt(parent)
    unknown = [wnid for wnid in manifest.classes if wnid not in known]
    if not known or not unknown:
        return []
    return [
        f"init_from: {config.init_from}: {len(unknown):,} of {len(manifest.classes):,} classes are "
        f"not among its {len(known):,}, and their rows of the head start from zeros: "
        f"{', '.join(unknown[:3])}{', …' if len(unknown) > 3 else ''}"
    ]


def file_system_of(path: Path, mounts: str) -> str:
    """The type of the file system that holds a path, from the text of ``/proc/self/mounts``."""
    best, kind = "", "unknown"
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        mount = re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), fields[1])
        inside = str(path) == mount or str(path).startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):  # of mounts on the same place the last counts
            best, kind = mount, fields[2]
    return kind


def _classes_of(path: Path) -> frozenset[str]:
    """The classes of a run or of one of our exports; none where it does not say."""
    run = RunDirectory(path)
    export = run.export_dir if run.exists else path
    document = read_json(export / CONFIG_NAME) if export.is_dir() else None
    if document is not None:
        classes = document.get("classes")
        return frozenset(map(str, classes)) if isinstance(classes, list) else frozenset()
    return _classes_learnt(run.read_config()) if run.exists else frozenset()


def _classes_learnt(config: RunConfig) -> frozenset[str]:
    manifest = manifest_if_built(config)
    return frozenset() if manifest is None or config.masking else frozenset(manifest.classes)


def _check_data(config: RunConfig, built: Collection[str]) -> Part:
    if config.task == "results":
        for layout in config.results.convert:
            check_target(config.model, layout)
        from pretrain.evaluate.measure import find_split  # brings numpy

        for path, split in evaluated_sets(config):
            if path not in built:
                find_split(config.data.model_copy(update={"path": path}), split, World())
    elif manifest_if_built(config) is not None or not config.data.build_automatically:
        require_manifest(config)
    else:
        check_build(config)
    return plan_part(config)


def _needs_job(run: RunDirectory) -> bool:
    """Whether a job would be submitted for a run: one that is active or done asks for nothing."""
    status = look(run, Queue())
    return status.phase != "done" and not status.is_active


def _check_parent(config: RunConfig) -> None:
    """Refuse to start from a run that is neither done nor under way; a path says it is meant."""
    parent = initial_weights_path(config)
    if parent is None or "/" in (config.init_from or "") or not RunDirectory(parent).exists:
        return
    status = look(RunDirectory(parent), Queue())
    if status.phase != "done" and not status.is_active:
        raise LaunchError(
            f"init_from: {config.init_from} is not done ({status.detail}); launch both with one "
            "command (--config … --config …), or give init_from=PATH"
        )


def _check_cluster(part: Part, partitions: Sequence[Partition]) -> list[str]:
    """Refuse what this cluster cannot give; Slurm itself has the last word."""
    config, plan = part.config, part.plan
    warnings = check_partition(config.cluster, plan.ranks_per_node, partitions)
    answer = ask_slurm(sbatch_script(config, plan.ranks_per_node))
    if not answer.accepted:
        # Also said of nodes that are drained for now, behind which a job may wait.
        if not (warnings and "node configuration is not available" in answer.text):
            raise LaunchError(f"sbatch refuses the job: {answer.text}")
        warnings.append(f"sbatch --test-only: {answer.text}")
    if plan.device == "cuda" and "+cpu" in metadata.version("torch"):
        warnings.append(
            f"torch {metadata.version('torch')} here is a build without CUDA, and the ranks run "
            f"with {sys.executable}"
        )
    for field, path in (("runs_dir", part.run.path), ("python", Path(sys.prefix))):
        kind = file_system_of(path.absolute(), Path("/proc/self/mounts").read_text())
        if kind in NODE_LOCAL:
            warnings.append(f"{field}: {path} lies on {kind}, which other nodes may not see")
    return warnings


def _held_bytes(run: RunDirectory) -> int:
    """What the run's own checkpoints hold already."""
    found = run.checkpoints_dir.rglob("*") if run.checkpoints_dir.is_dir() else ()
    return sum(path.stat().st_size for path in found if path.is_file())
