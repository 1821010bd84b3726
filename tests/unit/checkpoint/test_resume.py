import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from saved_by_hand import SHAPES, value, write_checkpoint

from pretrain.checkpoint.resume import CheckpointReader, newest_valid, verify
from pretrain.errors import CheckpointError

KINDS = ("master", "exp_avg", "exp_avg_sq")


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> CheckpointReader:
    return verify(write_checkpoint(tmp_path_factory.mktemp("saved"), 7))


def test_whole_parameters(reader):
    for kind in KINDS:
        for name, shape in SHAPES.items():
            assert torch.equal(reader.full(kind, name), value(kind, name, 7).view(shape))


@given(st.sampled_from(KINDS), st.integers(0, 15), st.integers(0, 15))
def test_any_range(reader, kind, one, other):
    start, end = min(one, other), max(one, other)
    part = reader.read(kind, "head.weight", start, end - start)
    assert torch.equal(part, value(kind, "head.weight", 7)[start:end])


def test_properties(reader):
    assert reader.step == 7
    assert reader.samples_consumed == 448
    assert reader.state["optimizer_step"] == 7
    assert reader.classes[0] == "n00000001"
    assert reader.shapes == SHAPES


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("master", "tail.weight", 0, 1), "master of tail.weight: not in this checkpoint"),
        (("ema", "head.bias", 0, 1), "ema of head.bias: not in this checkpoint"),
        (("master", "head.bias", 2, 2), "expected 3 elements, asked for 2 to 4"),
        (("master", "head.bias", -1, 2), "not in this checkpoint"),
    ],
)
def test_what_is_not_there_is_refused(reader, arguments, said):
    with pytest.raises(CheckpointError, match=said):
        reader.read(*arguments)


def test_closing_lets_go_of_the_files(tmp_path):
    def mapped() -> bool:
        return str(tmp_path) in Path("/proc/self/maps").read_text()

    opened = verify(write_checkpoint(tmp_path, 7))
    part = opened.read("master", "head.weight", 0, 15)
    assert mapped()
    opened.close()
    assert not mapped()
    assert torch.equal(part, value("master", "head.weight", 7))
    assert torch.equal(opened.read("master", "head.weight", 0, 15), part)


def test_nothing_saved_is_no_refusal(tmp_path):
    assert newest_valid(tmp_path) == (None, [])
    assert newest_valid(tmp_path / "never made") == (None, [])


def test_newest_is_by_step_not_by_time(tmp_path):
    for step in (10, 9, 100_000_000, 8):
        path = write_checkpoint(tmp_path, step)
        os.utime(path, (step % 7, step % 7))
    (tmp_path / "step_00000200.tmp").mkdir()
    (tmp_path / "latest").write_text("step_00000008")
    chosen, refusals = newest_valid(tmp_path)
    assert (chosen.step, refusals) == (100_000_000, [])


def _flip(path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_any_flipped_bit_is_found(tmp_path):
    """360 random flips over all files of a checkpoint: the older one is chosen every time."""
    older, newer = write_checkpoint(tmp_path, 1), write_checkpoint(tmp_path, 2)
    draws = random.Random(0)
    for path in sorted(newer.iterdir()):
        for _ in range(120):
            bit = draws.randrange(path.stat().st_size * 8)
            _flip(path, bit)
            chosen, refusals = newest_valid(tmp_path)
            assert chosen is not None
            assert chosen.directory == older, (path, bit)
            assert len(refusals) == 1
            assert path.name in refusals[0]
            _flip(path, bit)
    assert newest_valid(tmp_path)[0].step == 2


def test_any_truncation_is_found(tmp_path):
    write_checkpoint(tmp_path, 1)
    newer = write_checkpoint(tmp_path, 2)
    for path in sorted(newer.iterdir()):
        whole = path.read_bytes()
        for length in (0, 1, 8, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            chosen, refusals = newest_valid(tmp_path)
            assert chosen is not None
            assert chosen.step == 1
            assert path.name in refusals[0]
        path.write_bytes(whole)


def test_every_missing_file_is_found(tmp_path):
    write_checkpoint(tmp_path, 1)
    names = sorted(path.name for path in write_checkpoint(tmp_path, 2).iterdir())
    assert len(names) == 3
    for name in names:
        shutil.rmtree(tmp_path / "step_00000002")
        (write_checkpoint(tmp_path, 2) / name).unlink()
        chosen, refusals = newest_valid(tmp_path)
        assert chosen is not None
        assert chosen.step == 1
        assert name in refusals[0]
        assert "missing" in refusals[0]


def test_a_file_of_another_step_is_found(tmp_path):
    older, newer = write_checkpoint(tmp_path, 1), write_checkpoint(tmp_path, 2)
    shutil.copy(older / "rank_00001.safetensors", newer / "rank_00001.safetensors")
    chosen, refusals = newest_valid(tmp_path)
    assert chosen is not None
    assert chosen.step == 1
    assert "rank_00001.safetensors: damaged" in refusals[0]


def test_links_and_files_in_place_of_checkpoints(tmp_path):
    write_checkpoint(tmp_path, 1)
    (tmp_path / "step_00000005").symlink_to(tmp_path / "step_00000001")
    (tmp_path / "step_00000006").symlink_to(tmp_path / "step_00000006")
    (tmp_path / "step_00000007").write_text("not a directory")
    (tmp_path / "step_00000008").mkdir()
    chosen, refusals = newest_valid(tmp_path)
    assert chosen is not None
    assert chosen.step == 1
    assert [refusal.count("step_0000000") >= 1 for refusal in refusals] == [True] * 4


def test_all_unsound_is_told_apart_from_nothing(tmp_path):
    for step in (1, 2):
        (write_checkpoint(tmp_path, step) / "rank_00000.safetensors").unlink()
    chosen, refusals = newest_valid(tmp_path)
    assert chosen is None
    assert len(refusals) == 2
