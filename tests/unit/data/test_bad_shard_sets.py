"""What the loader says to shard sets that are not whole: one line for each fault, at once."""

import gzip
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pretrain.config.schema import AugmentConfig, DataConfig, EvalConfig
from pretrain.data.loader import eval_batches, train_batches
from pretrain.data.manifest import Manifest, index_path
from pretrain.errors import DataError
from pretrain.world import World

DATA = DataConfig(path=".", workers_per_rank=0, lanes=3, window_shards=2)


def read_all(manifest: Manifest) -> None:
    with train_batches(
        manifest, DATA, AugmentConfig(), seed=0, image_size=16, global_batch=6, micro_batch=6,
        accumulation=1, world=World(), first_step=0, last_step=7,
    ) as batches:  # fmt: skip
        for _ in batches:
            pass


def evaluate_all(manifest: Manifest) -> None:
    with eval_batches(
        manifest, "validation", DATA, EvalConfig(batch_size_per_rank=5), image_size=16,
        world=World(),
    ) as batches:  # fmt: skip
        for _ in batches:
            pass


def web_page(path: Path) -> None:
    path.write_text("<!doctype html><title>Sign in</title>")


def gzipped(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes(), mtime=0))


def empty_tar(path: Path) -> None:
    tarfile.open(path, "w").close()
    if path.stat().st_size == 10240:  # shards as small as that are not to be told by their size
        os.truncate(path, 1024)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (Path.unlink, "No such file or directory; copy it here again"),
    (lambda path: os.truncate(path, 700), "700 bytes, the manifest says {bytes}; copy it here"),
    (lambda path: os.truncate(path, 0), "0 bytes, the manifest says {bytes}; copy it here again"),
    (web_page, "37 bytes, the manifest says {bytes}; copy it here again"),
    (gzipped, "the manifest says {bytes}; copy it here again"),
    (empty_tar, "1,024 bytes, the manifest says {bytes}; copy it here again"),
    (pipe, "0 bytes, the manifest says {bytes}; copy it here again"),
]


@pytest.mark.parametrize(("damage", "said"), FAULTS)
@pytest.mark.parametrize(("split", "read"), [("train", read_all), ("validation", evaluate_all)])
def test_a_shard_that_is_not_whole(own_shard_set, damage, said, split, read):
    shard = own_shard_set.split(split).shards[-1]
    path = own_shard_set.root / shard.file
    damage(path)
    with pytest.raises(DataError) as caught:
        read(own_shard_set)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert said.format(bytes=f"{shard.bytes:,}") in message
    assert "\n" not in message


def test_an_index_that_is_missing_or_cut_short(own_shard_set):
    one, other, *_ = own_shard_set.split("train").shards
    index_path(own_shard_set.root, one).unlink()
    os.truncate(index_path(own_shard_set.root, other), 30)
    with pytest.raises(DataError) as caught:
        read_all(own_shard_set)
    first, second = str(caught.value).splitlines()
    assert first.endswith(f"{index_path(own_shard_set.root, one).name}: No such file or directory; "
                          "copy it here again")  # fmt: skip
    assert f"30 bytes, the manifest says {24 * other.samples:,}; copy it here again" in second


def test_an_index_of_another_build(own_shard_set):
    """Of the right size: only its digest tells."""
    for shard in own_shard_set.split("train").shards:
        path = index_path(own_shard_set.root, shard)
        stale = np.frombuffer(path.read_bytes(), np.uint8).copy()
        stale[8] ^= 1
        path.write_bytes(stale.tobytes())
    with pytest.raises(DataError, match=r"\.idx: index damaged: its sha256 is not") as caught:
        read_all(own_shard_set)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("filler", [b"\0", b"<html>"])
def test_a_shard_of_the_right_size_and_wrong_bytes(own_shard_set, filler):
    for shard in own_shard_set.split("train").shards:
        text = (filler * shard.bytes)[: shard.bytes]
        (own_shard_set.root / shard.file).write_bytes(text)
    with pytest.raises(DataError, match="the index does not belong to the shard") as caught:
        read_all(own_shard_set)
    assert "\n" not in str(caught.value)
    assert str(own_shard_set.root) in str(caught.value)
