"""Our order of samples for pipelines written for the webdataset library.

`as_webdataset` stands where ``webdataset.WebDataset(urls)`` stood; the chain behind it stays::

    dataset = as_webdataset(manifest, "train", data, seed=0, world=world, first_sample=resumed_at)
    dataset = dataset.decode("pil").to_tuple("jpg;png;webp;gif;bmp;tif", "cls")

Each sample then comes once per epoch, in an order that neither ranks nor workers change, from any
position on. Its bytes are checked as in training. Nothing in a shard is ever unpickled: ``decode``
knows images, ``cls``, ``txt`` and ``json``, and the decoders that the caller names.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
from webdataset.autodecode import Decoder, ImageHandler
from webdataset.compat import FluidInterface
from webdataset.filters import reraise_exception
from webdataset.pipeline import DataPipeline

from pretrain.config.schema import DataConfig
from pretrain.data.batch import BadSample
from pretrain.data.cache import ShardCache
from pretrain.data.decode import ImageError, read_header
from pretrain.data.manifest import Manifest, check_shards
from pretrain.data.order import SampleOrder
from pretrain.data.shards import BadSampleError, ShardReader
from pretrain.data.source import REPLACEMENTS_TRIED
from pretrain.errors import DataError
from pretrain.world import World

_POSITIONS_AT_ONCE = 256


class SafePipeline(DataPipeline, FluidInterface):  # pyright: ignore # as the library's own
    """A webdataset pipeline whose ``decode`` has a fixed table in place of the library's."""

    def decode(  # pyright: ignore # pre and post are what must not be given
        self,
        *args: str | Callable[[str, bytes], Any],
        only: str | list[str] | None = None,
        partial: bool = False,
        handler: Callable[[Exception], bool] = reraise_exception,
    ) -> "SafePipeline":
        """Decode the fields of each sample.

        Args:
            *args: names of image decoders of the webdataset library, such as ``"pil"`` or
                ``"torchrgb8"``, or functions of (extension with its dot, bytes).
            only: fields to decode; the others stay bytes.
            partial: leave fields alone that are not bytes any more.
            handler: called with an exception; true means go on without the sample.
        """
        named = [ImageHandler(item) if isinstance(item, str) else item for item in args]
        # Without ``pre`` and ``post`` the library would unpickle and call torch.load.
        decoder = Decoder([*named, _plain_field], pre=[], post=[], only=only, partial=partial)
        return cast("SafePipeline", self.map(decoder, handler=handler))


def as_webdataset(
    manifest: Manifest,
    split_name: str,
    data: DataConfig,
    *,
    seed: int,
    world: World,
    first_sample: int = 0,
    samples: int | None = None,
    on_bad: Callable[[BadSample], None] | None = None,
) -> SafePipeline:
    """This rank's samples of a stretch of the stream, as the webdataset library has them.

    A sample is ``{"__key__": str, "__url__": path of the shard, "jpg" (or "png", …): bytes, "cls":
    bytes, "json": bytes (where the shard has it)}``. Position p of the stream goes to rank p %
    ranks. Loader workers deal a rank's samples among them, so that a DataLoader with
    ``batch_size=None`` returns them in order whatever their number; where each worker makes its
    own batches, those hold other neighbours.

    Args:
        manifest: the shard set.
        split_name: which split.
        data: for ``lanes`` and ``window_shards``.
        seed: the run's seed.
        world: this rank's place.
        first_sample: samples that all ranks together have consumed before: where to resume.
        samples: to give to all ranks together, a multiple of their number. The default ends with
            the epoch, and begins the next by as few samples as give each rank the same number.
        on_bad: called for a sample that cannot be used, in the process that reads it; the next
            in order then stands in for it. Without it such a sample is an error.

    Raises:
        DataError: the split or its shards are missing, or ``samples`` cannot be shared evenly;
            while iterating: a sample that cannot be used.
    """
    split = manifest.split(split_name)
    check_shards(manifest, split_name)
    if samples is None:
        left = split.samples - first_sample % split.samples
        samples = -(-left // world.size) * world.size
    if first_sample < 0 or samples < 1 or samples % world.size:
        raise DataError(
            f"as_webdataset: expected first_sample >= 0 and samples a multiple of the {world.size} "
            f"ranks, got {first_sample} and {samples}"
        )
    order = SampleOrder(
        [shard.samples for shard in split.shards],
        seed=seed,
        lanes=data.lanes,
        window_shards=data.window_shards,
    )
    cache = None if manifest.url is None else ShardCache(manifest, split_name, data)
    reader = ShardReader(manifest.root, split.shards, len(manifest.classes), cache)
    positions = range(first_sample + world.rank, first_sample + samples, world.size)
    return SafePipeline(_Samples(reader, order, positions, on_bad))


class _Samples:
    """The first stage of the pipeline."""

    def __init__(
        self,
        reader: ShardReader,
        order: SampleOrder,
        positions: range,
        on_bad: Callable[[BadSample], None] | None,
    ):
        self._reader = reader
        self._order = order
        self._positions = positions
        self._on_bad = on_bad

    def __call__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        mine = self._positions[first::step]
        for start in range(0, len(mine), _POSITIONS_AT_ONCE):
            part = mine[start : start + _POSITIONS_AT_ONCE]
            ids = self._order.at(np.array(part, dtype=np.int64)).sample_ids.tolist()
            for position, sample_id in zip(part, ids, strict=True):
                yield self._usable(position, sample_id)

    def _usable(self, position: int, sample_id: int) -> dict[str, Any]:
        """The sample at a position, or the first usable one that follows it in its lane."""
        bad = None
        for candidate in self._order.candidates(position, sample_id, REPLACEMENTS_TRIED):
            try:
                return self._read(candidate)
            except BadSampleError as error:
                shard, number = self._reader.locate(candidate)
                bad = BadSample(shard.file, error.key or f"sample {number}", str(error))
                if self._on_bad is None:
                    raise DataError(f"{self._reader.root}: {bad}; or give on_bad") from None
                self._on_bad(bad)
        raise DataError(
            f"{REPLACEMENTS_TRIED} samples in a row cannot be used, the last: {bad}; check that "
            f"{self._reader.root} is intact"
        )

    def _read(self, sample_id: int) -> dict[str, Any]:
        sample = self._reader.read(sample_id)
        try:
            # Also holds the image to the limit on its size before anything decodes it.
            extension = read_header(sample.data).extension
        except ImageError as error:
            raise BadSampleError(str(error), sample.key) from None
        metadata = self._reader.read_metadata(sample_id)
        return {
            "__key__": sample.key,
            "__url__": str(self._reader.root / self._reader.locate(sample_id)[0].file),
            extension: sample.data,
            "cls": b"%d" % sample.label,
            **({} if metadata is None else {"json": metadata}),
        }


def _plain_field(extension: str, data: bytes) -> Any:
    """Label, text or metadata; None, which leaves the bytes alone, for all else."""
    kind = extension.rpartition(".")[2].lower()
    if kind == "cls":
        return int(data)
    if kind == "txt":
        return data.decode()
    return json.loads(data) if kind == "json" else None
