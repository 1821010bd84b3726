"""``python -m pretrain.evaluate WEIGHTS --data SHARD_SET``: accuracy of finished weights.

Alone, or in all ranks that torchrun or ``srun`` started: the numbers are the same.
"""

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pretrain.config.schema import DataConfig
from pretrain.data.manifest import Manifest, Split
from pretrain.errors import ConfigError, DataError, PretrainError, run_command
from pretrain.evaluate.classes import match_classes
from pretrain.evaluate.measure import EvalSet, RealLabels, Showing, find_split
from pretrain.evaluate.options import LEAVE_OUT_SWITCH, SQUASH, check_numbers, parser
from pretrain.evaluate.real_labels import read_real_labels
from pretrain.evaluate.recorded import (
    Preprocessing,
    Recorded,
    overridden,
    preprocessing_of_recipe,
    read_recorded,
)
from pretrain.location import is_remote
from pretrain.world import World, world_from_environment

if TYPE_CHECKING:
    import torch

    from pretrain.data.batch import Batch
    from pretrain.evaluate.measure import Measured
    from pretrain.evaluate.subject import Source, Subject

WORKERS_MAX = 8
TIMEOUT_SECONDS = 1800
"""Longest wait for another rank."""


class Checked(NamedTuple):
    """What was found right before torch was imported."""

    sets: list[tuple[DataConfig, Manifest, Split]]
    real: list[RealLabels | None]
    stem: Path


def main(arguments: Sequence[str]) -> int:
    """Evaluate, print the table and write the files; return the exit code.

    Raises:
        PretrainError: bad input, before anything is written; of several ranks, on rank zero.
        RefusedTogetherError: on the other ranks.
    """
    options = parser().parse_args(arguments)
    world = world_from_environment()
    checked, refusal = look(options, world)
    if refusal is not None and world.size == 1:
        raise refusal
    # Only now is torch worth its seconds.
    import torch

    from pretrain import dist

    # Nothing but counts passes between the ranks, whatever computes them.
    dist.initialize(world, torch.device("cpu"), TIMEOUT_SECONDS)
    try:
        evaluate(options, world, checked, refusal)
    finally:
        dist.shutdown()  # or the threads of the groups may abort a process that ends
    return 0


def look(options: argparse.Namespace, world: World) -> tuple[Checked | None, PretrainError | None]:
    """Look at everything that needs no torch; return what was found, or why it is refused."""
    try:
        read_recorded(options.weights_path)
        check_numbers(options)
        sets = [
            (data, *find_split(data, options.split, world))
            for data in _data_configs(options, world)
        ]
        real = _real_labels(options.real, [split for _, _, split in sets])
        return Checked(sets, real, _output_stem(options)), None
    except PretrainError as error:
        return None, error


def evaluate(
    options: argparse.Namespace,
    world: World,
    checked: Checked | None,
    refusal: PretrainError | None,
) -> None:
    """Evaluate, print the table and write the files. **Every rank**, after `dist.initialize`.

    Args:
        options: of the command line.
        world: this rank's place.
        checked: what `look` found on this rank.
        refusal: or why it refused.

    Raises:
        PretrainError: what a rank refused, on rank zero.
        RefusedTogetherError: on the others.
    """
    import torch

    from pretrain import dist
    from pretrain.evaluate.measure import measure

    torch.set_num_threads(max(1, _cores() // world.local_size))
    dist.agree(refusal)
    assert checked is not None  # noqa: S101 - for the type checker: a refusal left above
    with dist.refusing_together():
        device, source, subject, how, tests = _prepared(options, world, checked)
    results = [
        measure(
            subject,
            test,
            how[0],
            batch_size=options.batch_size,
            precision=options.precision,
            device=device,
            world=world,
            show=_showing(test, world),
        )
        for test in tests
    ]
    if world.rank == 0:
        _report(options, source, subject, *how, tests, results, checked.stem)


def _prepared(
    options: argparse.Namespace, world: World, checked: Checked
) -> "tuple[torch.device, Source, Subject, tuple[Preprocessing, str], list[EvalSet]]":
    """Read the weights and match their classes with those of the sets. Any rank, alone."""
    from pretrain.evaluate.subject import load_subject, read_source

    device = _device(options.device, world)
    source = read_source(options.weights_path, options.weights)
    subject = load_subject(
        source.weights,
        options.weights_path,
        classes=_classes(options.classes, source),
        image_size=options.image_size,
        device=device,
    )
    how = _preprocessing(options, source.recorded, subject.config.image_size)
    tests = [
        EvalSet(
            data,
            manifest,
            split,
            match_classes(
                subject.classes,
                manifest.classes,
                what=manifest.location,
                leave_out_unknown=options.leave_out_unknown_classes,
                switch=LEAVE_OUT_SWITCH,
            ),
            labels,
        )
        for (data, manifest, split), labels in zip(checked.sets, checked.real, strict=True)
    ]
    return device, source, subject, how, tests


def _report(
    options: argparse.Namespace,
    source: "Source",
    subject: "Subject",
    preprocessing: Preprocessing,
    stated_by: str,
    tests: "Sequence[EvalSet]",
    results: "Sequence[Measured]",
    stem: Path,
) -> None:
    from pretrain.data.manifest import class_order_sha256
    from pretrain.evaluate.report import (
        Evaluation,
        confused_lines,
        document,
        notes,
        print_table,
        write_files,
    )

    evaluation = Evaluation(
        weights={
            "path": str(options.weights_path.absolute()),
            "which": source.which,
            "variant": subject.config.variant,
            "model": subject.config.model_dump(mode="json"),
            "classes": len(subject.classes),
            "class_order_sha256": class_order_sha256(subject.classes),
            "provenance": source.recorded.provenance,
            "notes": list(source.notes),
        },
        preprocessing=preprocessing,
        stated_by=stated_by,
        precision=options.precision,
        names=source.recorded.class_names,
        sets=list(zip(tests, results, strict=True)),
    )
    said = document(evaluation)
    print_table(said)
    for line in notes(said, preprocessing):
        print(line)
    for one in said["sets"]:
        lines = confused_lines(one)
        if lines:
            print(f"{one['edition']}, most confused:")
        for line in lines:
            print(f"  {line}")
    # Last: a full disk must not take the numbers with it.
    written = write_files(stem, evaluation)
    print(f"written: {written[0]} and {written[1].name}", flush=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _data_configs(options: argparse.Namespace, world: World) -> list[DataConfig]:
    workers = options.workers
    if workers is None:
        workers = min(WORKERS_MAX, max(1, _cores() // world.local_size))
    repeated = {path for path in options.data if options.data.count(path) > 1}
    if repeated:
        raise ConfigError(f"--data: {min(repeated)} is given twice")
    return [
        DataConfig(
            path=path if is_remote(path) else str(Path(path).expanduser().absolute()),
            cache_dir=options.cache_dir,
            workers_per_rank=workers,
        )
        for path in options.data
    ]


def _real_labels(path: Path | None, splits: Sequence[Split]) -> list[RealLabels | None]:
    """Read ReaL labels and find the one set they are of, by the number of images."""
    if path is None:
        return [None] * len(splits)
    labels = read_real_labels(path)
    fitting = [split.samples == len(labels) for split in splits]
    if sum(fitting) != 1:
        sizes = ", ".join(f"{split.samples:,}" for split in splits)
        raise DataError(
            f"{path}: has labels for {len(labels):,} images, so expected one set of as many; the "
            f"sets given have {sizes}"
        )
    return [RealLabels(path, labels) if fits else None for fits in fitting]


def _output_stem(options: argparse.Namespace) -> Path:
    """Path of the files without their extensions, after a look at whether they can be written."""
    name = options.name or _name_of(options.weights_path)
    if "/" in name or name.startswith("."):
        raise ConfigError(f"--name: expected a file name, got {name!r}")
    directory = options.output.absolute()
    nearest = directory
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        state = "is not writable" if nearest.is_dir() else "is not a directory"
        raise ConfigError(f"--output: {directory}: {nearest} {state}; give another --output")
    return directory / name


def _name_of(path: Path) -> str:
    """``demo``, ``demo-export``, ``demo-step_00000500``: the run and what of it was named."""
    path = path.absolute()
    if path.is_file():
        path = path.parent / path.stem if path.stem != "model" else path.parent
    if path.parent.name == "checkpoints":
        return f"{path.parents[1].name}-{path.name}"
    return f"{path.parent.name}-{path.name}" if path.name == "export" else path.name


def _classes(path: Path | None, source: "Source") -> tuple[str, ...] | None:
    """The ids of the head's rows that the command line gives, if it gives any."""
    head = source.weights.tensors.get("head.weight")
    if path is None or head is None:
        return None
    from pretrain.convert.labels import read_labels

    return read_labels(path, len(head)).ids


def _device(asked: str, world: World) -> "torch.device":
    import torch

    there = torch.cuda.device_count() if asked != "cpu" else 0
    if asked == "cuda" and world.local_rank >= there:
        raise ConfigError(
            f"--device cuda: rank {world.rank} needs GPU {world.local_rank} of this node, which "
            f"has {there}; start as many ranks as there are GPUs, or give --device cpu"
        )
    on_gpu = there > 0 and world.local_size <= there
    if on_gpu:
        torch.cuda.set_device(world.local_rank)
    return torch.device(f"cuda:{world.local_rank}" if on_gpu else "cpu")


def _preprocessing(
    options: argparse.Namespace, recorded: Recorded, image_size: int
) -> tuple[Preprocessing, str]:
    """What is done to images, and who says so."""
    given, stated_by = recorded.preprocessing, "recorded with the weights"
    if given is None or given.image_size != image_size:
        of_recipe = preprocessing_of_recipe(image_size)
        kept = {} if given is None else {"mean": given.mean, "std": given.std}
        given, stated_by = overridden(of_recipe, kept), "the recipes do at this image size"
    changes: dict[str, Any] = {}
    if options.resize is not None:
        changes["resize"] = None if options.resize == SQUASH else int(options.resize)
    for key in ("mean", "std"):
        if getattr(options, key) is not None:
            changes[key] = tuple(getattr(options, key))
    if changes:
        stated_by = f"the command line says ({', '.join(changes)}), the rest {stated_by}"
    return overridden(given, changes), stated_by


def _showing(test: EvalSet, world: World) -> Showing:
    """A bar on rank zero's terminal, redrawn by hand: a drawing thread and forks do not mix."""

    def show(batches: "Iterable[Batch]", total: int) -> "Iterable[Batch]":
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        hidden = world.rank > 0 or not console.is_terminal
        with Progress(console=console, auto_refresh=False, disable=hidden) as progress:
            task = progress.add_task(test.manifest.edition, total=total)
            for batch in batches:
                yield batch
                progress.update(task, advance=1, refresh=True)

    return show


if __name__ == "__main__":
    run_command(main)
