import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from pretrain.config.schema import DataConfig
from pretrain.data.as_webdataset import as_webdataset
from pretrain.data.order import SampleOrder
from pretrain.data.shards import ShardReader, read_index
from pretrain.errors import DataError
from pretrain.world import World

DATA = DataConfig(path="unused", lanes=3, window_shards=2)


def world(rank: int = 0, size: int = 1) -> World:
    return World(rank=rank, size=size, local_rank=0, local_size=1)


def stream(manifest, split="train", *, rank=0, size=1, **options):
    return as_webdataset(manifest, split, DATA, seed=5, world=world(rank, size), **options)


def expected_keys(manifest, first: int, count: int) -> list[str]:
    shards = manifest.split("train").shards
    order = SampleOrder([s.samples for s in shards], seed=5, lanes=3, window_shards=2)
    reader = ShardReader(manifest.root, shards, len(manifest.classes))
    return [
        reader.read(i).key for i in order.at(np.arange(first, first + count)).sample_ids.tolist()
    ]


def keys(samples) -> list[str]:
    return [sample["__key__"] for sample in samples]


def test_samples_look_like_webdatasets(shard_set):
    samples = list(stream(shard_set))
    assert keys(samples) == expected_keys(shard_set, 0, 42)
    for sample in samples:
        assert set(sample) == {"__key__", "__url__", "jpg", "cls", "json"}
        assert Path(sample["__url__"]).is_file()
        assert sample["jpg"].startswith(b"\xff\xd8")
        assert sample["cls"] in (b"0", b"1", b"2")
        wnid = json.loads(sample["json"])["wnid"]
        assert wnid == shard_set.classes[int(sample["cls"])]


def test_an_existing_chain_works(shard_set):
    chain = (
        stream(shard_set)
        .decode("pil")
        .to_tuple("jpg", "cls")
        .map_tuple(lambda image: np.asarray(image).mean(), lambda label: label + 10)
        .batched(6, partial=False)
    )
    batches = list(chain)
    assert len(batches) == 7
    assert {int(label) for _, labels in batches for label in labels} == {10, 11, 12}


@pytest.mark.parametrize(("name", "kind"), [("pil", Image.Image), ("rgb8", np.ndarray)])
def test_the_librarys_image_decoders_can_be_named(shard_set, name, kind):
    assert all(isinstance(sample["jpg"], kind) for sample in stream(shard_set).decode(name))


def test_own_decoders_come_first_and_only_is_kept(shard_set):
    first = next(iter(stream(shard_set).decode(lambda ext, data: len(data), only=["jpg"])))
    assert isinstance(first["jpg"], int)
    assert isinstance(first["cls"], bytes)


def test_nothing_is_unpickled(shard_set, tmp_path):
    mark = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return Path.touch, (mark,)

    data = pickle.dumps(Payload())
    evil = dict.fromkeys(("pyd", "pickle", "pkl", "pth", "x.pyd", "npy", "gz"), data)
    samples = list(stream(shard_set).map(lambda sample: {**sample, **evil}).decode("pil"))
    assert all(sample[name] == data for sample in samples for name in evil)
    assert not mark.exists()
    pickle.loads(data)
    assert mark.exists(), "the payload is harmless, so this test shows nothing"


def test_text_and_metadata_are_decoded(shard_set):
    added = stream(shard_set).map(lambda s: {**s, "json": b'{"a": 1}', "txt": b"x"}).decode("pil")
    first = next(iter(added))
    assert (first["json"], first["txt"]) == ({"a": 1}, "x")


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("first", [0, 17, 40, 60])
def test_any_number_of_ranks_resumed_anywhere_share_one_stream(shard_set, size, first):
    parts = [keys(stream(shard_set, rank=r, size=size, first_sample=first)) for r in range(size)]
    assert len({len(part) for part in parts}) == 1
    merged = [key for position in zip(*parts, strict=True) for key in position]
    assert merged == expected_keys(shard_set, first, len(merged))
    assert 0 <= len(merged) - (42 - first % 42) < size


def test_workers_change_nothing(shard_set):
    for workers in (0, 1, 3):
        loader = DataLoader(stream(shard_set), batch_size=None, num_workers=workers)
        assert keys(loader) == expected_keys(shard_set, 0, 42)


def test_a_stretch_may_be_asked_for(shard_set):
    assert keys(stream(shard_set, samples=100, first_sample=7)) == expected_keys(shard_set, 7, 100)
    for options in ({"samples": 7, "size": 2}, {"first_sample": -1}, {"samples": 0}):
        with pytest.raises(DataError, match="multiple of the"):
            stream(shard_set, **options)


def test_bad_samples_are_errors_or_are_told_and_replaced(own_shard_set):
    shard = own_shard_set.split("train").shards[0]
    record = read_index(own_shard_set.root, shard)[1]
    path = own_shard_set.root / shard.file
    data = bytearray(path.read_bytes())
    data[int(record["offset"]) + 50] ^= 1
    before = expected_keys(own_shard_set, 0, 45)
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"{shard.file}, .*: its bytes have changed"):
        list(stream(own_shard_set))
    bad = []
    found = keys(stream(own_shard_set, on_bad=bad.append))
    assert [item.shard for item in bad] == [shard.file]
    at = before.index(bad[0].key)
    # The next of its lane, of three lanes.
    assert found == [*before[:at], before[at + 3], *before[at + 1 : 42]]


def test_what_is_no_image_is_bad(own_shard_set, monkeypatch):
    monkeypatch.setattr("pretrain.data.decode.MAX_PIXELS", 100)
    with pytest.raises(DataError, match="pixels"):
        list(stream(own_shard_set))
    with pytest.raises(DataError, match="64 samples in a row"):
        list(stream(own_shard_set, on_bad=lambda _: None))
