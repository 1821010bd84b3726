"""One set under test: found and checked without torch, then measured by every rank."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pretrain.config.schema import DataConfig, EvalConfig
from pretrain.data.manifest import Manifest, Split, check_shards, read_manifest
from pretrain.data.remote_split import remote_eval_split
from pretrain.data.shards import ShardReader
from pretrain.evaluate.classes import ClassMap
from pretrain.evaluate.real_labels import check_numbers, image_number, label_table
from pretrain.world import World

if TYPE_CHECKING:
    import torch

    from pretrain.data.batch import BadSample, Batch
    from pretrain.evaluate.recorded import Preprocessing
    from pretrain.evaluate.subject import Precision, Subject
    from pretrain.evaluate.tally import Tallied


@dataclass(frozen=True)
class RealLabels:
    """The content of a file of ReaL labels: by image number, and where it was read."""

    path: Path
    labels: Sequence[Sequence[int]]


@dataclass(frozen=True)
class EvalSet:
    """A split to evaluate on.

    Attributes:
        data: how it is read.
        manifest: of its shard set.
        split: which split.
        classes: what its labels are in the model's head.
        real: its ReaL labels, if they are asked for.
    """

    data: DataConfig
    manifest: Manifest
    split: Split
    classes: ClassMap
    real: RealLabels | None = None

    @property
    def what(self) -> str:
        """Its name in messages."""
        return f"{self.manifest.location}, split {self.split.name!r}"


@dataclass(frozen=True)
class Measured:
    """What came of a set: the counts, and every image that could not be read, over all ranks."""

    tallied: "Tallied"
    bad: tuple["BadSample", ...]


class Showing(Protocol):
    """Passes batches on while it shows how far they are."""

    def __call__(self, batches: Iterable["Batch"], total: int, /) -> Iterable["Batch"]:
        """Yield the batches; there are ``total``."""
        ...


def find_split(data: DataConfig, name: str | None, world: World) -> tuple[Manifest, Split]:
    """Find a split and compare its shards with the manifest; ranks share the comparing.

    Args:
        data: where the set is.
        name: of the split; None takes the only one, else the validation split.
        world: this rank's place.

    Raises:
        DataError: no set, no such split, or shards that are missing.
    """
    manifest = read_manifest(data.path, cache_dir=data.cache_dir)
    name = name or manifest.default_split
    split = manifest.split(name)
    check_shards(manifest, name, world.rank, world.size)
    return manifest, split


def measure(
    subject: "Subject",
    test: EvalSet,
    preprocessing: "Preprocessing",
    *,
    batch_size: int,
    precision: "Precision",
    device: "torch.device",
    world: World,
    show: Showing,
) -> Measured:
    """Evaluate a model on a set. **Every rank**, after `pretrain.dist.initialize`.

    Images are dealt to the ranks in whole batches, which are the same at any number of ranks, and
    everything is counted in whole numbers: so are the results.

    Raises:
        DataError: too many images that cannot be read, a label outside the set's classes, or ReaL
            labels that are not those of its images.
    """
    from pretrain import dist
    from pretrain.augment.pipeline import normalize
    from pretrain.data.batch import BadSample
    from pretrain.data.loader import eval_batches
    from pretrain.evaluate.tally import Mapping, Tally, count_batches

    answers = None if test.real is None else _answers(test, test.real, world, batch_size)
    mapping = Mapping(test.classes, device)
    tally = Tally(mapping.num_classes, device, answers)
    bad: list[BadSample] = []
    with dist.refusing_together(), ExitStack() as stack:
        batches = stack.enter_context(
            eval_batches(
                test.manifest,
                test.split.name,
                test.data,
                EvalConfig(resize=preprocessing.resize, batch_size_per_rank=batch_size),
                image_size=preprocessing.image_size,
                world=world,
            )
        )
        counted = -(-test.split.samples // (batch_size * world.size))
        count_batches(
            subject.logits_of(device, precision),
            noting(show(batches, counted), bad),
            lambda images: normalize(images, preprocessing.mean, preprocessing.std),
            mapping,
            tally,
            device,
        )
    of_ranks = dist.gather_objects([asdict(one) for one in bad])
    everywhere = sorted((BadSample(**one) for of_rank in of_ranks for one in of_rank), key=str)
    return Measured(tally.total(), tuple(everywhere))


def noting(batches: Iterable["Batch"], bad: list["BadSample"]) -> Iterator["Batch"]:
    """Pass batches on, keeping what could not be read."""
    for batch in batches:
        bad += batch.bad
        yield batch


def _answers(test: EvalSet, real: RealLabels, world: World, batch_size: int) -> list[list[int]]:
    """ReaL labels by sample id; the ranks share the reading of image numbers."""
    from pretrain import dist

    own = range(world.rank, test.split.samples, world.size)
    mine: list[int | None] = []
    with dist.refusing_together(), _reader(test, world, batch_size) as reader:
        mine = [image_number(reader, sample_id) for sample_id in own]
    found = dist.gather_objects(mine)
    numbers: list[int | None] = [None] * test.split.samples
    for rank, of_rank in enumerate(found):
        numbers[rank :: world.size] = of_rank
    with dist.refusing_together():
        check_numbers(numbers, real.labels, test.what)
        table = label_table(
            real.labels,
            [number for number in numbers if number is not None],
            test.manifest.classes,
            test.classes.positions,
            real.path,
        )
    return table  # noqa: RET504 - only after the others have theirs


@contextmanager
def _reader(test: EvalSet, world: World, batch_size: int) -> Iterator[ShardReader]:
    """A reader of the split's samples, through the node's cache where the set is remote."""
    manifest = test.manifest
    remote = remote_eval_split(manifest, test.split.name, test.data, world, batch_size)
    reader = ShardReader(
        manifest.root,
        test.split.shards,
        len(manifest.classes),
        None if remote is None else remote.cache,
    )
    with closing(reader):
        yield reader
    if remote is not None:
        remote.close()
