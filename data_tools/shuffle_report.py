"""Says how well mixed the images are in the order in which training will see them.

python -m data_tools.shuffle_report SHARD_SET --global-batch 4096 --nodes 8 --plot mixing.svg

Batches in the middle of an epoch are compared with those of a uniform shuffle of the whole split:
how often two images of a batch share their class, and whether a batch resembles the one before it.
Beside that stands what the order costs: from how many shards a batch comes, and how many each node
reads from at a time. The exit code is 1, with advice, where the order is not mixed well enough.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.config.schema import DataConfig
from pretrain.data.cache import ShardCache
from pretrain.data.manifest import Manifest, Split, check_shards, read_manifest
from pretrain.data.order import SampleOrder
from pretrain.data.shards import read_index
from pretrain.errors import DataError, run_command

MOST_COLLISION_RATIO = 1.5
MOST_AUTOCORRELATION = 0.3
_STANDARD_DEVIATIONS = 4
_POINTS_PLOTTED = 6000
_PLACES_LOOKED_AT = 33


@dataclass(frozen=True)
class Settings:
    """How a run would read the split; `DataConfig` says what lanes and windows are."""

    global_batch: int
    nodes: int
    batches: int
    seed: int
    lanes: int
    window_shards: int


@dataclass(frozen=True)
class Mixing:
    """What was measured over consecutive global batches in the middle of the first epoch.

    Attributes:
        collision_ratios: per batch, pairs of images with the same class, divided by the number
            expected of a uniform shuffle; 1 is perfect.
        collision_ratio: their mean.
        collision_deviation: standard deviation of that mean under a uniform shuffle.
        autocorrelation: of the class histograms of neighbouring batches; 0 is perfect.
        shards_per_batch: distinct shards in a global batch, mean.
        shards_per_batch_uniform: what a uniform shuffle would have, mean.
        shards_in_play: shards that one node reads from at a time, the most that was seen.
        bytes_in_play: size of those shards together.
        shard_numbers: int64 [positions], the shard of each position looked at.
    """

    collision_ratios: NDArray[np.float64]
    collision_ratio: float
    collision_deviation: float
    autocorrelation: float
    shards_per_batch: float
    shards_per_batch_uniform: float
    shards_in_play: int
    bytes_in_play: int
    shard_numbers: NDArray[np.int64]

    @property
    def is_good(self) -> bool:
        """Whether chance explains what is above the limits."""
        margin = _STANDARD_DEVIATIONS * self.collision_deviation
        return (
            self.collision_ratio <= MOST_COLLISION_RATIO + margin
            and self.autocorrelation <= MOST_AUTOCORRELATION
        )


def measure(labels: NDArray[np.int32], split: Split, settings: Settings) -> Mixing:
    """Measure the order of a split.

    Args:
        labels: int32 [samples], in manifest order.
        split: its shards.
        settings: of the run.

    Raises:
        DataError: an epoch has fewer than two global batches.
    """
    size = settings.global_batch
    in_epoch = len(labels) // size
    if in_epoch < 2:
        raise DataError(
            f"split {split.name!r}: {len(labels):,} samples are fewer than two global batches of "
            f"{size:,}; choose a smaller --global-batch"
        )
    batches = min(settings.batches, in_epoch)
    first = (in_epoch - batches) // 2 * size
    counts = [shard.samples for shard in split.shards]
    order = SampleOrder(
        counts,
        seed=settings.seed,
        lanes=settings.lanes,
        window_shards=settings.window_shards,
    )
    ids = order.at(np.arange(first, first + batches * size)).sample_ids
    shard_numbers = np.searchsorted(np.cumsum(counts), ids, side="right")
    by_class = np.bincount(labels)
    histograms = [
        np.bincount(part, minlength=len(by_class)) for part in labels[ids].reshape(batches, size)
    ]
    ratios, deviation = _collisions(histograms, by_class, size)
    in_play = _shards_in_play(order, settings)
    return Mixing(
        collision_ratios=ratios,
        collision_ratio=float(ratios.mean()),
        collision_deviation=deviation,
        autocorrelation=_autocorrelation(histograms, by_class, size),
        shards_per_batch=float(
            np.mean([len(np.unique(part)) for part in shard_numbers.reshape(batches, size)])
        ),
        shards_per_batch_uniform=float((1 - (1 - np.asarray(counts) / len(labels)) ** size).sum()),
        shards_in_play=len(in_play),
        bytes_in_play=sum(split.shards[number].bytes for number in in_play),
        shard_numbers=shard_numbers,
    )


def read_labels(
    manifest: Manifest, split: Split, cache: ShardCache | None = None
) -> NDArray[np.int32]:
    """The label of every sample of a split: int32 [samples], in manifest order.

    Args:
        manifest: the shard set.
        split: one of its splits.
        cache: of that split, for a remote set.

    Raises:
        DataError: an index is missing or damaged.
    """
    if cache is None:
        check_shards(manifest, split.name)
    else:
        cache.fetch_indices()
    return np.concatenate([read_index(manifest.root, shard)["label"] for shard in split.shards])


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    settings = Settings(
        global_batch=options.global_batch,
        nodes=options.nodes,
        batches=options.batches,
        seed=options.seed,
        lanes=options.lanes,
        window_shards=options.window_shards,
    )
    for name, value in vars(settings).items():
        least = {"seed": 0, "global_batch": 2}.get(name, 1)
        if value < least:
            raise DataError(f"--{name.replace('_', '-')}: expected at least {least}, got {value}")
    if settings.global_batch % settings.nodes:
        raise DataError(
            f"--nodes: {settings.nodes} do not divide the global batch of {settings.global_batch}"
        )
    manifest = read_manifest(options.shard_set, cache_dir=options.cache_dir)
    split = manifest.split(options.split)
    data = DataConfig(path=options.shard_set, cache_dir=options.cache_dir)
    cache = None if manifest.url is None else ShardCache(manifest, split.name, data)
    labels = read_labels(manifest, split, cache)
    mixing = measure(labels, split, settings)
    print("\n".join(_lines(manifest, split, settings, mixing)))
    if options.plot is not None:
        _plot(mixing, len(split.shards), options.plot)
    if not mixing.is_good:
        print("\n".join(_advice(labels, split, settings)))
    return 0 if mixing.is_good else 1


def _parser() -> argparse.ArgumentParser:
    defaults = DataConfig.model_fields
    parser = argparse.ArgumentParser(
        prog="python -m data_tools.shuffle_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shard_set", help="directory that holds manifest.json, or its URL")
    parser.add_argument("--cache-dir", metavar="DIR", help="for a URL: as data.cache_dir")
    parser.add_argument("--split", default="train", help="(default: train)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help=".svg, .png or .pdf to write")
    for name, default, meaning in (
        ("--global-batch", 4096, "images of a step"),
        ("--nodes", 1, "among which it is divided"),
        ("--batches", 64, "looked at"),
        ("--seed", 0, "of the run"),
        ("--lanes", defaults["lanes"].default, "as in the config"),
        ("--window-shards", defaults["window_shards"].default, "as in the config"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"{meaning} (default: {default})")
    return parser


def _collisions(
    histograms: list[NDArray[np.int64]], by_class: NDArray[np.int64], size: int
) -> tuple[NDArray[np.float64], float]:
    """Ratio per batch, and the standard deviation of their mean if all were left to chance."""
    total = int(by_class.sum())
    chance = float((by_class * (by_class - 1)).sum()) / (total * (total - 1))
    pairs = size * (size - 1)
    if chance == 0:
        return np.ones(len(histograms)), 0.0
    ratios = np.array([(h * (h - 1)).sum() / pairs / chance for h in histograms])
    return ratios, (2 * (1 - chance) / (chance * pairs * len(histograms))) ** 0.5


def _autocorrelation(
    histograms: list[NDArray[np.int64]], by_class: NDArray[np.int64], size: int
) -> float:
    expected = by_class * (size / by_class.sum())
    apart = np.stack(histograms) - expected
    power = float((apart**2).sum(axis=1).mean())
    return 0.0 if power == 0 else float((apart[1:] * apart[:-1]).sum(axis=1).mean()) / power


def _shards_in_play(order: SampleOrder, settings: Settings) -> list[int]:
    """Shards that the first node reads from where, of some places of an epoch, they are most."""
    share = settings.global_batch // settings.nodes
    lanes = order.lanes_of(0, share, settings.global_batch)
    positions = np.linspace(0, order.samples - 1, _PLACES_LOOKED_AT, dtype=np.int64).tolist()
    in_play = [np.flatnonzero(order.next_uses(at, lanes) == at).tolist() for at in positions]
    return max(in_play, key=len)


def _lines(manifest: Manifest, split: Split, settings: Settings, mixing: Mixing) -> list[str]:
    return [
        f"{manifest.location}, split {split.name!r}: {split.samples:,} samples of "
        f"{len(manifest.classes):,} classes in {len(split.shards):,} shards; "
        f"{len(mixing.collision_ratios)} global batches of {settings.global_batch:,}",
        f"class collision ÷ uniform shuffle   {mixing.collision_ratio:.2f}   (1 is perfect, "
        f"above {MOST_COLLISION_RATIO} is bad)",
        f"lag-1 autocorrelation of classes    {mixing.autocorrelation:+.2f}  (0 is perfect, "
        f"above {MOST_AUTOCORRELATION} is bad)",
        f"distinct shards per global batch    {mixing.shards_per_batch:,.0f} "
        f"({mixing.shards_per_batch_uniform:,.0f} in a uniform shuffle)",
        f"shards in play on each of {settings.nodes} nodes    {mixing.shards_in_play:,} "
        f"({mixing.bytes_in_play / 2**30:.1f} GiB)",
    ]


def _advice(labels: NDArray[np.int32], split: Split, settings: Settings) -> list[str]:
    lines = ["warning: neighbouring images are alike; the training would suffer"]
    window = settings.window_shards
    while window < len(split.shards):
        window = min(4 * window, len(split.shards))
        wider = Settings(**{**vars(settings), "window_shards": window})
        mixing = measure(labels, split, wider)
        if mixing.is_good:
            lines.append(
                f"data.window_shards={window} would do: collision {mixing.collision_ratio:.2f}, "
                f"{mixing.shards_in_play:,} shards in play per node "
                f"({mixing.bytes_in_play / 2**30:.1f} GiB)"
            )
            break
    lines.append(
        "best is to pack the images again: `python -m data_tools.build` shuffles the whole split"
    )
    return lines


def _plot(mixing: Mixing, shards: int, path: Path) -> None:
    # Only this needs it, and it takes long to import.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    positions: Any = np.arange(len(mixing.shard_numbers))[:_POINTS_PLOTTED]
    left.plot(positions, mixing.shard_numbers[:_POINTS_PLOTTED], ",", color="tab:blue")
    left.set(xlabel="position in the stream", ylabel="shard", ylim=(-0.5, shards - 0.5))
    left.set_title("where consecutive images come from")
    right.plot(mixing.collision_ratios, ".-", color="tab:blue", label="this order")
    right.axhline(1, color="tab:green", label="uniform shuffle")
    right.axhline(MOST_COLLISION_RATIO, color="tab:red", linestyle="--", label="bad above")
    right.set(xlabel="global batch", ylabel="class collision ÷ uniform shuffle")
    right.set_ylim(bottom=0)
    right.set_title(f"lag-1 autocorrelation {mixing.autocorrelation:+.2f}")
    right.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be written: {error}") from None


if __name__ == "__main__":
    run_command(main)
