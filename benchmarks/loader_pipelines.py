"""The loaders that `benchmarks/loader.py` compares, each over the same images.

Every function reads ``images`` training images from what `prepare` wrote, in batches of
`BATCH`, decoded and cut to `SIDE` pixels by a random resized crop, and returns how many came out.
"Pillow, float32" is what most training scripts do: decode with Pillow, crop and resize with
Pillow's bicubic filter, normalise to float32 in the worker. "fast, uint8" replaces that by this
project's decoder and resize, so that only the reading and batching differ.
"""

import importlib
import io
import math
import multiprocessing
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pretrain.config.schema import AugmentConfig, DataConfig
from pretrain.data.crop import random_resized_crop_box, train_image
from pretrain.data.decode import read_header
from pretrain.data.loader import train_batches
from pretrain.data.manifest import read_manifest
from pretrain.data.shards import ShardReader
from pretrain.world import World

BATCH = 64
SIDE = 224
_SCALE, _RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def swin_pretrain(data: Path, images: int, workers: int) -> int:
    """This project's loader."""
    settings = DataConfig(path=str(data / "shards"), workers_per_rank=workers)
    batches = train_batches(
        read_manifest(data / "shards"),
        settings,
        AugmentConfig(),
        seed=0,
        image_size=SIDE,
        global_batch=BATCH,
        micro_batch=BATCH,
        accumulation=1,
        world=World(rank=0, size=1, local_rank=0, local_size=1),
        first_step=0,
        last_step=images // BATCH,
    )
    with batches:
        return sum(len(batch.images) for batch in batches)


def webdataset_pillow(data: Path, images: int, workers: int) -> int:
    """The webdataset library with Pillow and float32: the baseline."""
    wds: Any = importlib.import_module("webdataset")
    urls = [str(path) for path in sorted((data / "shards").glob("*-train-*.tar"))]
    dataset = wds.WebDataset(urls, shardshuffle=len(urls)).shuffle(1000).decode("pil")
    dataset = dataset.to_tuple("jpg", "cls").map_tuple(_pillow_float, int)
    return _drained(dataset, images, workers)


def mosaic_pillow(data: Path, images: int, workers: int) -> int:
    """mosaicml-streaming with Pillow and float32."""
    return _mosaic(data, images, workers, _pillow_float_of)


def mosaic_fast(data: Path, images: int, workers: int) -> int:
    """mosaicml-streaming with this project's decoding."""
    return _mosaic(data, images, workers, _fast_uint8)


def litdata_pillow(data: Path, images: int, workers: int) -> int:
    """Litdata with Pillow and float32."""
    return _litdata(data, images, workers, _pillow_float_of)


def litdata_fast(data: Path, images: int, workers: int) -> int:
    """Litdata with this project's decoding."""
    return _litdata(data, images, workers, _fast_uint8)


def dali(data: Path, images: int, workers: int) -> int:
    """NVIDIA DALI on the CPU: its webdataset reader, fused decode and crop, cubic resize, uint8."""
    nvidia: Any = importlib.import_module("nvidia.dali")
    paths = [str(path) for path in sorted((data / "shards").glob("*-train-*.tar"))]

    def graph() -> Any:
        encoded, label = nvidia.fn.readers.webdataset(
            paths=paths, ext=["jpg", "cls"], random_shuffle=True, initial_fill=1000, seed=0
        )
        decoded = nvidia.fn.decoders.image_random_crop(
            encoded, device="cpu", random_area=list(_SCALE), random_aspect_ratio=list(_RATIO)
        )
        resized = nvidia.fn.resize(
            decoded, size=[SIDE, SIDE], interp_type=nvidia.types.INTERP_CUBIC, antialias=True
        )
        return resized, label

    pipeline = nvidia.pipeline_def(graph)(
        batch_size=BATCH, num_threads=max(1, workers), device_id=None
    )
    pipeline.build()
    count = 0
    while count < images // BATCH * BATCH:
        pixels, _ = pipeline.run()
        count += len(torch.from_numpy(pixels.as_array()))
    return count


def decode_floor(data: Path, images: int, workers: int) -> int:
    """libjpeg-turbo alone: whole images, bytes already in memory, into memory already there.

    In as many processes as the loaders have, as cores that work side by side slow each other.
    """
    processes = max(1, workers)
    context = multiprocessing.get_context("fork")
    share = -(-images // processes)
    started = [context.Process(target=_decode, args=(data, share)) for _ in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    return share * processes


def _decode(data: Path, images: int) -> None:
    manifest = read_manifest(data / "shards")
    reader = ShardReader(manifest.root, manifest.split("train").shards, len(manifest.classes))
    kept = [reader.read(i).data for i in range(min(512, manifest.split("train").samples))]
    headers = [read_header(image) for image in kept]
    buffer = np.zeros(3 * max(h.height * h.width for h in headers), dtype=np.uint8)
    for i in range(images):
        simplejpeg.decode_jpeg(kept[i % len(kept)], "RGB", buffer=buffer)


PIPELINES: dict[str, tuple[Callable[[Path, int, int], int], str | None]] = {
    "swin-pretrain": (swin_pretrain, None),
    "webdataset, Pillow, float32": (webdataset_pillow, "webdataset"),
    "mosaicml-streaming, Pillow, float32": (mosaic_pillow, "streaming"),
    "mosaicml-streaming, fast, uint8": (mosaic_fast, "streaming"),
    "litdata, Pillow, float32": (litdata_pillow, "litdata"),
    "litdata, fast, uint8": (litdata_fast, "litdata"),
    "NVIDIA DALI on CPU, uint8": (dali, "nvidia.dali"),
    "libjpeg-turbo decode alone": (decode_floor, None),
}
"""Name → the function and the module it needs beyond this project's."""
BASELINE, FLOOR, OURS = (
    "webdataset, Pillow, float32",
    "libjpeg-turbo decode alone",
    "swin-pretrain",
)


def prepare(data: Path, modules: set[str]) -> None:
    """Write the shards' samples again in the formats that the importable ``modules`` want."""
    manifest = read_manifest(data / "shards")
    split = manifest.split("train")
    reader = ShardReader(manifest.root, split.shards, len(manifest.classes))

    def sample(index: int) -> dict[str, Any]:
        found = reader.read(index)
        return {"jpg": found.data, "cls": found.label}

    if "streaming" in modules:
        streaming: Any = importlib.import_module("streaming")
        columns = {"jpg": "bytes", "cls": "int"}
        with streaming.MDSWriter(out=str(data / "mds"), columns=columns, compression=None) as out:
            for index in range(split.samples):
                out.write(sample(index))
    if "litdata" in modules:
        litdata: Any = importlib.import_module("litdata")
        litdata.optimize(
            fn=sample,
            inputs=list(range(split.samples)),
            output_dir=str(data / "litdata"),
            chunk_bytes="64MB",
            num_workers=1,
            start_method="fork",
        )


def _mosaic(data: Path, images: int, workers: int, transform: Callable[[bytes], Any]) -> int:
    streaming: Any = importlib.import_module("streaming")

    class Images(streaming.StreamingDataset):
        def __getitem__(self, at: int) -> Any:
            found = super().__getitem__(at)
            return transform(found["jpg"]), found["cls"]

    dataset = Images(local=str(data / "mds"), shuffle=True, batch_size=BATCH)
    return _drained(dataset, images, workers)


def _litdata(data: Path, images: int, workers: int, transform: Callable[[bytes], Any]) -> int:
    litdata: Any = importlib.import_module("litdata")

    class Images(litdata.StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            found = super().__getitem__(index)
            return transform(found["jpg"]), found["cls"]

    dataset = Images(str(data / "litdata"), shuffle=True)
    loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers)
    return _count(loader, images)


def _drained(dataset: Any, images: int, workers: int) -> int:
    return _count(DataLoader(dataset, batch_size=BATCH, num_workers=workers), images)


def _count(loader: Any, images: int) -> int:
    count = 0
    for pixels, _ in loader:
        count += len(pixels)
        if count >= images // BATCH * BATCH:
            break
    return count


def _pillow_float(image: Image.Image) -> torch.Tensor:
    image = image.convert("RGB")
    top, left, height, width = random_resized_crop_box(
        random.getrandbits(62), image.height, image.width, _SCALE, _RATIO
    )
    cut = image.crop((left, top, left + width, top + height))
    resized = cut.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()
    return pixels.to(torch.float32).div_(255).sub_(_MEAN).div_(_STD)


def _pillow_float_of(data: bytes) -> torch.Tensor:
    return _pillow_float(Image.open(io.BytesIO(data)))


def _fast_uint8(data: bytes) -> torch.Tensor:
    return train_image(bytes(data), random.getrandbits(62), SIDE, _SCALE, _RATIO)


def whole_batches(images: int) -> int:
    """The least number of images, at least ``images``, that fills every batch."""
    return math.ceil(images / BATCH) * BATCH
