import hashlib
import io
import json
import tarfile
import zlib

import numpy as np
import pytest

from pretrain.data import shards as shards_module
from pretrain.data.manifest import Manifest, Shard, index_path
from pretrain.data.shards import INDEX_DTYPE, BadSampleError, ShardReader, read_index
from pretrain.errors import DataError


def reader_of(manifest: Manifest, split: str = "train") -> ShardReader:
    return ShardReader(manifest.root, manifest.split(split).shards, len(manifest.classes))


def overwrite(path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_every_sample_is_what_the_tar_says(shard_set):
    reader = reader_of(shard_set)
    sample_id = 0
    for shard in shard_set.split("train").shards:
        with tarfile.open(shard_set.root / shard.file) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for key in sorted({name.partition(".")[0] for name in members}):
            sample = reader.read(sample_id)
            assert sample.key == key
            assert sample.data == members[f"{key}.jpg"]
            assert sample.label == int(members[f"{key}.cls"])
            sample_id += 1
    assert sample_id == shard_set.split("train").samples


def test_samples_are_located_in_their_shards(shard_set):
    shards = shard_set.split("train").shards
    reader = reader_of(shard_set)
    assert reader.locate(0) == (shards[0], 0)
    assert reader.locate(shards[0].samples - 1) == (shards[0], shards[0].samples - 1)
    assert reader.locate(shards[0].samples) == (shards[1], 0)


def test_few_descriptors_are_enough(shard_set, monkeypatch):
    soft_and_hard = (shards_module._FILES_KEPT_FREE + 4, 10**6)
    monkeypatch.setattr(shards_module.resource, "getrlimit", lambda _: soft_and_hard)
    reader = reader_of(shard_set)
    ids = [5, 40, 20, 0, 41, 5, 20]
    assert [reader.read(i).key for i in ids] == [reader_of(shard_set).read(i).key for i in ids]
    assert len(reader._open) == 2
    reader.close()
    assert not reader._open


def test_as_many_shards_stay_open_as_are_read_at_a_time(shard_set):
    shards = shard_set.split("train").shards
    reader = ShardReader(shard_set.root, shards, len(shard_set.classes), most_open=3)
    for sample_id in range(42):
        reader.read(sample_id)
    assert len(reader._open) == 3


def test_metadata_is_found_behind_the_image(shard_set):
    reader = reader_of(shard_set)
    for sample_id in (0, 20, 41):
        metadata = json.loads(reader.read_metadata(sample_id) or b"")
        assert metadata["wnid"] == shard_set.classes[reader.read(sample_id).label]


def metadata_of(folder, samples: dict[str, tuple[str, ...]]) -> list[bytes | None]:
    """Pack samples with these members, each holding its own name, and read their metadata."""
    records = []
    with tarfile.open(folder / "a.tar", "w") as tar:
        for key, extensions in samples.items():
            for extension in extensions:
                member = tarfile.TarInfo(f"{key}.{extension}")
                data = member.name.encode()
                member.size = len(data)
                offset = tar.offset + 512
                tar.addfile(member, io.BytesIO(data))
                if extension in ("jpg", "png"):
                    records.append((offset, len(data), 0, zlib.crc32(data), zlib.crc32(data)))
    index = np.array(records, INDEX_DTYPE)
    index.tofile(folder / "a.idx")
    digest = hashlib.sha256(index.tobytes()).hexdigest()
    reader = ShardReader(folder, [Shard("a.tar", len(samples), 1, "", digest)], 1)
    numbers = range(len(samples))
    assert [reader.read(i).key for i in numbers] == list(samples)
    return [reader.read_metadata(i) for i in numbers]


def test_shards_without_metadata_have_none(tmp_path):
    """Written by others: the label behind the image, or nothing."""
    samples = {"a": ("jpg", "cls"), "b": ("jpg",), "c": ("jpg", "json"), "d": ("png", "cls")}
    assert metadata_of(tmp_path, samples) == [None, None, b"c.json", None]


def test_metadata_sorted_before_the_image_is_found_too(tmp_path):
    """Members are sorted by extension, so that a ``.png`` comes last."""
    samples = {"a": ("cls", "json", "png"), "b": ("cls", "png"), "c": ("json", "png", "txt")}
    assert metadata_of(tmp_path, samples) == [b"a.json", None, b"c.json"]


def test_a_damaged_header_behind_the_image_is_noticed(own_shard_set):
    shard = own_shard_set.split("train").shards[0]
    record = read_index(own_shard_set.root, shard)[1]
    behind = int(record["offset"]) + -(-int(record["bytes"]) // 512) * 512
    overwrite(own_shard_set.root / shard.file, behind + 110, b"9")
    reader = reader_of(own_shard_set)
    assert reader.read(1)
    with pytest.raises(BadSampleError, match="a header behind its image is damaged"):
        reader.read_metadata(1)


def test_a_flipped_bit_is_noticed(own_shard_set):
    shard = own_shard_set.split("train").shards[0]
    record = read_index(own_shard_set.root, shard)[1]
    path = own_shard_set.root / shard.file
    middle = int(record["offset"]) + int(record["bytes"]) // 2
    flipped = path.read_bytes()[middle] ^ 0x10
    overwrite(path, middle, bytes([flipped]))
    reader = reader_of(own_shard_set)
    reader.read(0)
    with pytest.raises(BadSampleError, match="bytes have changed"):
        reader.read(1)
    reader.read(2)


def test_a_shard_cut_short_is_noticed(own_shard_set):
    shard = own_shard_set.split("train").shards[0]
    last = read_index(own_shard_set.root, shard)[-1]
    with (own_shard_set.root / shard.file).open("r+b") as file:
        file.truncate(int(last["offset"]) + 10)
    with pytest.raises(BadSampleError, match="ends before"):
        reader_of(own_shard_set).read(shard.samples - 1)


def test_a_shard_from_elsewhere_is_noticed(own_shard_set):
    """An index that matches its manifest, beside other bytes than it was made from."""
    first, second, *_ = own_shard_set.split("train").shards
    second_bytes = (own_shard_set.root / second.file).read_bytes()
    (own_shard_set.root / first.file).write_bytes(second_bytes)
    for sample_id in range(first.samples):
        with pytest.raises(BadSampleError, match=r"index does not belong|ends before"):
            reader_of(own_shard_set).read(sample_id)


@pytest.mark.parametrize("field", ["name", "size"])
def test_the_members_header_is_compared(own_shard_set, field):
    shard = own_shard_set.split("train").shards[0]
    header = int(read_index(own_shard_set.root, shard)[0]["offset"]) - 512
    place, data = {"name": (0, b"other.jpg"), "size": (124, b"00000000007")}[field]
    overwrite(own_shard_set.root / shard.file, header + place, data)
    with pytest.raises(BadSampleError, match="index does not belong"):
        reader_of(own_shard_set).read(0)


def test_labels_outside_the_class_list_are_refused(shard_set):
    reader = ShardReader(shard_set.root, shard_set.split("train").shards, num_classes=1)
    with pytest.raises(BadSampleError, match=r"label [12], expected 0 to 0"):
        for sample_id in range(shard_set.split("train").samples):
            reader.read(sample_id)


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_damaged_indices_stop_the_run(own_shard_set, damage):
    shard = own_shard_set.split("train").shards[0]
    path = index_path(own_shard_set.root, shard)
    if damage is None:
        records = np.fromfile(path, INDEX_DTYPE)
        records["label"][0] += 1
        records.tofile(path)
    else:
        path.write_bytes(damage)
    with pytest.raises(DataError, match=rf"{path}: index damaged"):
        reader_of(own_shard_set).read(0)


def test_a_vanished_shard_is_a_bad_sample_after_retries(own_shard_set, monkeypatch):
    waits = []
    monkeypatch.setattr(shards_module.time, "sleep", waits.append)
    (own_shard_set.root / own_shard_set.split("train").shards[0].file).unlink()
    with pytest.raises(BadSampleError, match="cannot be read: No such file"):
        reader_of(own_shard_set).read(0)
    assert waits == [0.05, 0.5]


def test_a_passing_failure_is_survived(shard_set, monkeypatch):
    monkeypatch.setattr(shards_module.time, "sleep", lambda _: None)
    real, calls = shards_module.os.pread, []

    def fails_once(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError(116, "Stale file handle")
        return real(*arguments)

    monkeypatch.setattr(shards_module.os, "pread", fails_once)
    assert reader_of(shard_set).read(0).key == "000000_000000"
    assert len(calls) == 2


def test_short_reads_are_continued(shard_set, monkeypatch):
    expected = reader_of(shard_set).read(3)
    real = shards_module.os.pread
    monkeypatch.setattr(
        shards_module.os, "pread", lambda file, count, at: real(file, min(count, 100), at)
    )
    assert reader_of(shard_set).read(3) == expected
