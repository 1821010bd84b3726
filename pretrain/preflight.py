"""What must hold before a run is queued or a file of it written, checked without torch."""

import os
import shutil
from pathlib import Path

from pretrain.config.schema import DataConfig, RunConfig
from pretrain.convert.labels import read_label_list
from pretrain.convert.sources import holds_weights, source_of
from pretrain.data.manifest import Manifest, Split, check_shards, read_manifest
from pretrain.data.remote import LAUNCH_PATIENCE, Patience, patience_of
from pretrain.errors import ConfigError, DataError, PretrainError
from pretrain.evaluate.probe import Probe, open_probe
from pretrain.location import is_remote
from pretrain.plan.results import evaluated_sets
from pretrain.run_directory import RunDirectory

INIT_FIELDS = ("init_classes", "init_weights", "init_image_size", "init_window_size")
"""What the config may say about the source of initial weights."""


def manifest_if_built(config: RunConfig) -> Manifest | None:
    """Return the manifest of the config's data, or None where nothing is built yet.

    Of a remote set nothing but the manifest is asked for, with short deadlines.

    Raises:
        DataError: something is there but it is not a sound manifest, or a remote set has none.
    """
    return _manifest(config.data, LAUNCH_PATIENCE)


def _manifest(data: DataConfig, patience: Patience) -> Manifest | None:
    if is_remote(data.path):
        return read_manifest(
            data.path, cache_dir=data.cache_dir, allow_pipe=data.allow_pipe, patience=patience
        )
    path = Path(data.path)
    return read_manifest(path) if _exists(path / "manifest.json", "data.path") else None


def require_manifest(config: RunConfig, rank: int = 0, ranks: int = 1) -> Manifest:
    """Return the manifest of the config's data after comparing it with the shards beside it.

    The ranks of a job share the comparing. The shards of a probe are compared too.

    Raises:
        DataError: the shards are missing (the message says how to build them) or disagree, or the
            probe has classes that the data has not.
    """
    # A job that got its nodes can wait for a server.
    manifest = _manifest(config.data, patience_of(config.data))
    if manifest is None:
        build = config.data.build or "python -m data_tools.build --help"
        raise DataError(
            f"data.path: no shards: {config.data.path}/manifest.json does not exist; "
            f"build them with: {build}"
        )
    check_shards(manifest, config.data.train_split, rank, ranks)
    if config.data.eval_split is not None:
        check_shards(manifest, config.data.eval_split, rank, ranks)
    probe = read_probe(config, manifest)
    if probe is not None:
        check_shards(probe.manifest, probe.split, rank, ranks)
    return manifest


def read_probe(config: RunConfig, manifest: Manifest) -> Probe | None:
    """Return the set that the config names as a probe, None without one.

    Args:
        config: of the run.
        manifest: of its data, whose classes are those of the head.

    Raises:
        DataError: it is no shard set, or lacks the split, or has classes that the data has not.
    """
    settings = config.eval.probe
    if settings is None:
        return None
    return open_probe(
        settings,
        manifest.classes,
        cache_dir=config.data.cache_dir,
        patience=patience_of(config.data),
    )


def probe_split_if_built(config: RunConfig) -> Split | None:
    """Return the split that the config names as a probe; None without one, or before it is built.

    Raises:
        DataError: something is there but it is no sound shard set, or it lacks the split.
    """
    settings = config.eval.probe
    if settings is None:
        return None
    data = config.data.model_copy(update={"path": settings.path, "allow_pipe": False})
    manifest = _manifest(data, LAUNCH_PATIENCE)
    return None if manifest is None else manifest.split(settings.split)


def result_splits_if_built(config: RunConfig) -> list[Split]:
    """Return the splits that a run of results evaluates on, without the sets that are not built.

    Raises:
        DataError: something is there but it is no sound shard set, or it lacks the split.
        ConfigError: there is nothing to evaluate on.
    """
    found = []
    for path, name in evaluated_sets(config):
        data = config.data.model_copy(update={"path": path, "allow_pipe": False})
        manifest = _manifest(data, LAUNCH_PATIENCE)
        if manifest is not None:
            found.append(manifest.split(name or manifest.default_split))
    return found


def initial_weights_path(config: RunConfig) -> Path | None:
    """Return the run, file or directory that ``init_from`` means; None for scratch."""
    if config.init_from is None:
        return None
    if "/" in config.init_from:
        return Path(config.init_from)
    return Path(config.runs_dir) / config.init_from


def check_initial_weights(config: RunConfig) -> None:
    """Refuse an ``init_from`` that does not exist or that is plainly no weights.

    What takes torch to tell is refused by `pretrain.initial_weights`, before the first step.

    Raises:
        ConfigError: with the path looked at.
    """
    path = initial_weights_path(config)
    if path is None:
        given = [name for name in INIT_FIELDS if getattr(config, name) is not None]
        if given:
            raise ConfigError(f"{given[0]}: says how to read init_from, which is not given")
        return
    if path == Path(config.runs_dir) / config.name:
        raise ConfigError(
            f"init_from: {config.init_from}: is this run itself; the same command resumes it, "
            "and another --name starts another run from it"
        )
    if not _exists(path, "init_from"):
        raise ConfigError(
            f"init_from: {config.init_from}: {path} does not exist; train it first, launch both "
            "with one command (--config … --config …), or give init_from=PATH"
        )
    try:
        source = source_of(path)
    except PretrainError as error:
        raise ConfigError(f"init_from: {error}") from None
    if config.init_classes is not None:
        try:
            read_label_list(Path(config.init_classes))
        except PretrainError as error:
            raise ConfigError(f"init_classes: {error}") from None
    # A run given by name may still be training: whoever launches waits for it.
    by_path = "/" in (config.init_from or "")
    if source == "run" and by_path and not holds_weights(RunDirectory(path)):
        raise ConfigError(
            f"init_from: {config.init_from}: the run has no export and no checkpoint yet; "
            "train it first"
        )


def check_output(config: RunConfig) -> None:
    """Refuse a run directory that cannot be made or written.

    Raises:
        ConfigError: naming the directory that stands in the way.
    """
    path = Path(config.runs_dir) / config.name
    nearest = path
    while not _exists(nearest, "runs_dir"):
        nearest = nearest.parent
    if not nearest.is_dir():
        raise ConfigError(f"runs_dir: {path}: {nearest} is not a directory; give runs_dir=PATH")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"runs_dir: {path}: {nearest} is not writable; give runs_dir=PATH")


def free_disk_bytes(config: RunConfig) -> int:
    """Return the free space where the run directory is, or will be."""
    path = Path(config.runs_dir)
    while not _exists(path, "runs_dir"):
        path = path.parent
    return shutil.disk_usage(path).free


def _exists(path: Path, field: str) -> bool:
    try:
        return path.exists()
    except OSError as error:  # no permission, too long
        raise ConfigError(f"{field}: {path}: cannot be looked at: {error.strerror}") from None
