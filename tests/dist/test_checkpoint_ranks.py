"""Checkpoints across real ranks: resuming exactly, changing the world, disks and kills."""

import re
from pathlib import Path
from typing import Any

import pytest
from ranks import RanksFailed, run_ranks

from pretrain.checkpoint.resume import CheckpointReader, newest_valid, verify

RUNS = [[1, "fp32"], [2, "fp32"], [3, "fp32"], [1, "bf16"], [3, "bf16"]]
NAMES = [f"{precision}{stage}" for stage, precision in RUNS]
CROSSED = [(1, 3), (3, 1), (2, 3), (3, 2), (1, 2), (2, 1)]

LAST_STATE = {"optimizer_step": 5, "skipped_steps": 0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Any]:
    """Two ranks save and resume; one continues theirs and saves its own; two continue that."""
    folder = tmp_path_factory.mktemp("runs")
    crossed = [[f"world2_fp32{source}", stage] for source, stage in CROSSED]
    down = [[f"world2_fp32{stage}", stage] for stage in (1, 2, 3)]
    up = [[f"world1_fp32{stage}", stage] for stage in (1, 2, 3)]
    two = run_ranks("cases_checkpoint:write_runs", 2, str(folder), RUNS)
    one = run_ranks("cases_checkpoint:world_of_one", 1, str(folder), RUNS[:3], down)
    run_ranks("cases_checkpoint:continue_runs", 2, str(folder), crossed + up)
    return {"folder": folder, "ranks": two + one}


@pytest.mark.parametrize("name", NAMES)
def test_fragments_cover_every_element_once(runs, name):
    found = [rank[name]["covered"] for rank in runs["ranks"] if name in rank]
    assert found == [True] * (3 if "fp32" in name else 2)


@pytest.mark.parametrize("name", NAMES)
def test_resume_equals_uninterrupted_bitwise(runs, name):
    for rank in runs["ranks"]:
        if name in rank:
            assert rank[name]["loaded"]
            assert rank[name]["bitwise"]
            assert rank[name]["state"] == [LAST_STATE] * 2


def _distance(one: CheckpointReader, other: CheckpointReader) -> dict[str, float]:
    assert one.shapes == other.shapes
    return {
        kind: max(
            float((one.full(kind, name) - other.full(kind, name)).abs().max())
            for name in one.shapes
        )
        for kind in ("master", "exp_avg", "exp_avg_sq")
    }


def _end(runs: dict[str, Any], name: str) -> CheckpointReader:
    return verify(Path(runs["folder"]) / name / "step_00000005")


@pytest.mark.parametrize(
    ("source", "world", "stage"),
    [
        *((f"world2_fp32{stage}", 1, stage) for stage in (1, 2, 3)),
        *((f"world1_fp32{stage}", 2, stage) for stage in (1, 2, 3)),
        *((f"world2_fp32{source}", 2, stage) for source, stage in CROSSED),
    ],
)
def test_another_world_or_stage_goes_on_the_same_way(runs, source, world, stage):
    uninterrupted = _end(runs, f"{source}_end")
    resumed = _end(runs, f"{source}_to_world{world}_stage{stage}")
    assert resumed.manifest.world_size == world
    distance = _distance(uninterrupted, resumed)
    # Two more steps with sums in another order: units in the last place of values near 1.
    assert distance["master"] < 2e-6
    assert distance["exp_avg"] < 2e-7
    assert distance["exp_avg_sq"] < 2e-7


def test_training_moved_between_save_and_end(runs):
    """The distances above would also be small if nothing were trained or loaded."""
    folder = Path(runs["folder"])
    saved = verify(folder / "world2_fp321" / "step_00000003")
    assert _distance(saved, _end(runs, "world2_fp321_end"))["master"] > 1e-4


PAIRS = [(one, other) for one in (1, 2, 3) for other in (1, 2, 3)]


@pytest.fixture(scope="module")
def chains(runs) -> dict[str, Any]:
    """Of each pair of stages: two ranks' step 3, to 4 in one rank, to 5 in four, in two again."""
    saved = "step_00000003"
    hops: list[tuple[int, list[list[Any]]]] = [(1, []), (4, []), (2, [])]
    for one, other in PAIRS:
        name = f"chain_{one}_{other}"
        hops[0][1].append([f"world2_fp32{one}/{saved}", other, 4, f"{name}_a"])
        hops[1][1].append([f"{name}_a/step_00000004", one, 5, f"{name}_b"])
        hops[2][1].append([f"{name}_b/step_00000005", other, 5, f"{name}_c"])
    for size, jobs in hops:
        run_ranks(
            "cases_checkpoint:continue_to", size, str(runs["folder"]), jobs, timeout_seconds=600
        )
    return runs


@pytest.mark.slow
@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_two_ranks_then_one_then_four_then_two(chains, one, other):
    four, two = _end(chains, f"chain_{one}_{other}_b"), _end(chains, f"chain_{one}_{other}_c")
    assert (four.manifest.world_size, two.manifest.world_size) == (4, 2)
    assert set(_distance(four, two).values()) == {0.0}  # loading and saving changes no bit
    distance = _distance(_end(chains, f"world2_fp32{one}_end"), two)
    assert distance["master"] < 2e-6
    assert distance["exp_avg"] < 2e-7
    assert distance["exp_avg_sq"] < 2e-7


@pytest.fixture(scope="module")
def faults(tmp_path_factory) -> list[dict[str, Any]]:
    return run_ranks("cases_checkpoint:faults", 2, str(tmp_path_factory.mktemp("faults")))


@pytest.mark.parametrize(
    ("case", "where"),
    [("tensors", "rank 1: .*rank_00001.safetensors"), ("manifest", "rank 0: .*manifest.json")],
)
def test_disk_error_on_one_rank_is_everyones(faults, case, where):
    for rank in faults:
        assert re.search(where, rank[case]["message"])
        assert "File too large" in rank[case]["message"]
        assert "MiB are free" in rank[case]["message"]
        assert rank[case]["left"] == ["step_00000001"]
        assert rank[case]["after"] == ["step_00000003"]


def test_listing_error_is_everyones(faults):
    for rank in faults:
        assert "cannot be listed (Not a directory)" in rank["listing"]


def test_a_sound_checkpoint_is_kept_and_a_damaged_one_replaced(faults):
    assert [rank["same_step"] for rank in faults] == [[True, True, True]] * 2


def test_a_gap_is_never_committed(faults):
    for rank in faults:
        assert "a gap or an overlap at 40" in rank["gap"]


def test_rank_killed_mid_save_leaves_the_older_one(tmp_path):
    with pytest.raises(RanksFailed) as failure:
        run_ranks("cases_checkpoint:killed_mid_save", 2, str(tmp_path))
    assert failure.value.return_codes[1] == -9
    assert failure.value.return_codes[0] not in (0, None)  # it noticed, and did not hang
    assert list(tmp_path.glob("attempt_00000002_*/step_00000002"))
    reader, refusals = newest_valid(tmp_path)
    assert reader is not None
    assert (reader.step, refusals) == (1, [])
    verify(reader.directory)
    names = run_ranks("cases_checkpoint:save_again", 1, str(tmp_path), 2)
    assert names == [["step_00000002"]]


def _sweep(folder: Path, stride: int) -> dict[str, Any]:
    found = run_ranks("cases_checkpoint:crash_points", 1, str(folder), stride, timeout_seconds=600)
    assert found[0]["bad"] == []
    assert found[0]["exit"] == 0  # the sweep went on to the end of the save
    assert set(found[0]["newest"]) == {1, 2}  # both sides of the commit were reached
    return found[0]


def test_kill_at_lines_of_a_save(tmp_path):
    assert _sweep(tmp_path, 17)["points"] >= 8


@pytest.mark.slow
def test_kill_at_every_line_of_a_save(tmp_path):
    assert _sweep(tmp_path, 1)["points"] >= 130
