"""The store's keeping and pruning, in a world of one; several ranks are in tests/dist."""

from pathlib import Path

import pytest
import torch
from saved_by_hand import SHAPES, write_checkpoint

from pretrain import dist
from pretrain.checkpoint import commit
from pretrain.checkpoint.resume import newest_valid
from pretrain.checkpoint.store import CheckpointStore
from pretrain.errors import CheckpointError, OwnershipError, StorageError
from pretrain.world import World


@pytest.fixture(autouse=True)
def world_of_one():
    dist.initialize(World(), torch.device("cpu"), timeout_seconds=30)
    yield
    dist.shutdown()


def save(directory: Path, step: int, *, keep_last: int = 2, drop: str = "") -> Path:
    fragments = {
        f"{kind}|{name}|0": torch.full((torch.Size(shape).numel(),), float(step))
        for kind in ("master", "exp_avg", "exp_avg_sq")
        for name, shape in SHAPES.items()
        if name != drop
    }
    return CheckpointStore(directory, world=World(), keep_last=keep_last).save(
        step,
        fragments,
        shapes=SHAPES,
        state={"optimizer_step": step},
        samples_consumed=step * 8,
        config_sha256="0" * 64,
        classes=["n1", "n2", "n3"],
    )


def names(directory: Path) -> list[str]:
    """What there is beside the working directory of the one attempt that owns all."""
    found = sorted(path.name for path in directory.iterdir())
    assert sum(name.startswith("attempt_") for name in found) == 1
    return [name for name in found if not name.startswith("attempt_")]


def test_saves_what_the_reader_reads(tmp_path):
    assert save(tmp_path / "made" / "on demand", 3).name == "step_00000003"
    reader, refusals = newest_valid(tmp_path / "made" / "on demand")
    assert reader is not None
    assert refusals == []
    assert (reader.step, reader.samples_consumed, reader.classes) == (3, 24, ("n1", "n2", "n3"))
    assert torch.equal(reader.full("exp_avg", "head.weight"), torch.full((3, 5), 3.0))


def test_keeps_the_newest(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step)
    assert names(tmp_path) == ["step_00000004", "step_00000005"]


def test_unsound_ones_do_not_count_as_kept(tmp_path):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step)
    (tmp_path / "step_00000003" / "manifest.json").unlink()
    save(tmp_path, 4)
    assert names(tmp_path) == ["step_00000002", "step_00000003", "step_00000004"]


def test_never_deletes_what_it_just_wrote(tmp_path):
    """After a refused step 9 the run goes on from 2: what it saves then is the newest there is."""
    write_checkpoint(tmp_path, 2)
    (write_checkpoint(tmp_path, 9) / "rank_00000.safetensors").write_bytes(b"rotten")
    save(tmp_path, 3, keep_last=1)
    assert names(tmp_path) == ["step_00000003", "step_00000009"]
    assert newest_valid(tmp_path)[0].step == 3


def test_removes_what_dead_saves_left(tmp_path):
    for leftover in ("step_00000002.tmp", "step_00000001.old.tmp"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "rank_00000.safetensors").write_bytes(b"half")
    (tmp_path / "notes.tmp").write_text("somebody's")
    save(tmp_path, 2)
    assert names(tmp_path) == ["notes.tmp", "step_00000002"]


def test_another_configs_step_is_replaced(tmp_path):
    write_checkpoint(tmp_path, 3)
    path = tmp_path / "step_00000003" / "manifest.json"
    assert "rank_00001" in path.read_text()
    store = CheckpointStore(tmp_path, world=World(), keep_last=1)
    store.save(3, {}, shapes={}, state={}, samples_consumed=0, config_sha256="1" * 64, classes=[])
    assert "rank_00001" not in path.read_text()
    assert newest_valid(tmp_path)[0].config_sha256 == "1" * 64
    assert names(tmp_path) == ["step_00000003"]


def test_incomplete_fragments_are_refused(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"master of head\.bias.*gap"):
        save(tmp_path, 2, drop="head.bias")
    assert names(tmp_path) == ["step_00000001"]


def test_a_file_in_place_of_the_directory(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match="checkpoints: cannot be written"):
        save(tmp_path / "checkpoints", 1)


def test_keeping_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep_last"):
        CheckpointStore(tmp_path, world=World(), keep_last=0)


def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    save(tmp_path, 1)
    usage = commit.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(commit.shutil, "disk_usage", lambda _: usage._replace(free=500))
    with pytest.raises(StorageError) as refusal:
        save(tmp_path, 2)
    message = str(refusal.value)
    assert "a checkpoint needs 0.0 MiB more, 0.0 MiB are free" in message
    assert "1 older checkpoint is untouched" in message
    assert "\n" not in message
    assert names(tmp_path) == ["step_00000001"]


def test_the_best_and_every_nth_are_kept(tmp_path):
    store = CheckpointStore(tmp_path, world=World(), keep_last=1, keep_best=1, keep_every_steps=4)
    for step, accuracy in enumerate((0.1, 0.7, None, 0.2, 0.6, None, 0.7, 0.3, None), 1):
        store.save(
            step, {}, shapes={}, state={}, samples_consumed=0, config_sha256="", classes=[],
            accuracy_fraction=accuracy,
        )  # fmt: skip
    assert names(tmp_path) == ["step_00000004", "step_00000007", "step_00000008", "step_00000009"]
    reader, _ = newest_valid(tmp_path)
    assert reader is not None
    assert reader.manifest.accuracy_fraction is None


def test_a_deleted_working_directory_is_not_made_again(tmp_path):
    """Its absence is how an attempt learns that it was taken over."""
    store = CheckpointStore(tmp_path, world=World(), keep_last=1)
    area = tmp_path / store.claim(7)
    (area / "owner.json").unlink()
    area.rmdir()
    with pytest.raises(OwnershipError, match=r"attempt_00000007_\w+: was deleted under this"):
        store.check_owner()
    with pytest.raises(OwnershipError, match="was deleted"):
        store.save(
            1, {}, shapes={}, state={}, samples_consumed=0, config_sha256="", classes=[]
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_going_back_deletes_what_came_later(tmp_path):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step)
    (tmp_path / "step_00000003" / "manifest.json").unlink()
    CheckpointStore(tmp_path, world=World(), keep_last=1).delete_after(1)
    assert names(tmp_path) == ["step_00000001"]
    (area,) = tmp_path.glob("attempt_*")
    assert [path.name for path in area.iterdir()] == ["owner.json"]


def test_going_back_waits_for_what_is_being_written(tmp_path):
    store = CheckpointStore(tmp_path, world=World(), keep_last=3, background=True)
    for step in (1, 2):
        store.save(
            step, {}, shapes={}, state={}, samples_consumed=0, config_sha256="", classes=[],
            wait=step == 1,
        )  # fmt: skip
    store.delete_after(1)
    assert names(tmp_path) == ["step_00000001"]
    assert [saved.step for saved in store.finished()] == [1, 2]
