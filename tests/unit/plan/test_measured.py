"""The rate that earlier runs measured, and what the plan makes of it."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain.config.load import load_run
from pretrain.config.schema import RunConfig
from pretrain.plan.derive import make_plan
from pretrain.plan.measured import measured_rate
from pretrain.plan.render import render, total_cost
from pretrain.plan.resources import Resources
from pretrain.run_directory import RunDirectory

NODES = Resources(device="cuda", nodes=2, ranks_per_node=8)


def config_of(runs: Path, *overrides: str, name: str = "asked") -> RunConfig:
    return load_run("swin_t_22k", [f"runs_dir={runs}", *overrides], cluster="slurm", run_name=name)


def left_behind(config: RunConfig, *, rate: float | None, step: int = 100, age: int = 0) -> None:
    """A run that measured a rate on one node of eight GPUs."""
    run = RunDirectory(Path(config.runs_dir) / config.name)
    resources = replace(NODES, nodes=1)
    run.create(config, make_plan(config, None, resources, free_disk_bytes=0).to_json())
    progress = {"step": step, "images_per_second": rate, "state": "done"}
    run.progress_path.write_text(json.dumps(progress))
    stamp = run.progress_path.stat().st_mtime - age
    os.utime(run.progress_path, (stamp, stamp))


def test_the_newest_run_of_the_same_work_counts(tmp_path: Path) -> None:
    left_behind(config_of(tmp_path, name="old"), rate=800.0, age=100)
    left_behind(config_of(tmp_path, name="new"), rate=1600.0, age=50)
    others = {
        "other_size": ["model.image_size=448"],
        "other_precision": ["engine.precision=fp32"],
        "other_place": ["cluster.partition=old"],
        "other_micro_batch": ["batch.micro_size_max=128"],
        "seeded": ["seed=1", "optim.lr=1e-4", "data.workers_per_rank=1"],
    }
    for name in ("other_size", "other_precision", "other_place", "other_micro_batch"):
        left_behind(config_of(tmp_path, *others[name], name=name), rate=1.0)
    left_behind(config_of(tmp_path, name="short"), rate=1.0, step=10)
    left_behind(config_of(tmp_path, name="nothing"), rate=None)
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "progress.json").write_text("{")
    found = measured_rate(config_of(tmp_path), NODES)
    assert found is not None
    assert (found.run, found.ranks, found.images_per_second_per_rank) == ("new", 8, 200.0)
    assert measured_rate(config_of(tmp_path), replace(NODES, device="cpu")) is None
    # What does not change the work does not matter.
    left_behind(config_of(tmp_path, *others["seeded"], name="seeded"), rate=2400.0)
    again = measured_rate(config_of(tmp_path), NODES)
    assert again is not None
    assert again.run == "seeded"


def test_nothing_is_measured_where_nothing_ran(tmp_path: Path) -> None:
    assert measured_rate(config_of(tmp_path / "none"), NODES) is None


def test_the_plan_counts_hours_from_what_was_measured(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    left_behind(config_of(tmp_path, name="before"), rate=1600.0)
    rate = measured_rate(config, NODES)
    plan = make_plan(config, None, NODES, free_disk_bytes=0, measured=rate)
    assert plan.cost.images_per_second == pytest.approx(3200)
    assert plan.cost.hours == pytest.approx(plan.total_steps * plan.global_batch / 3200 / 3600)
    assert plan.cost.gpu_hours == pytest.approx(16 * plan.cost.hours)
    said = render(config, plan)
    assert (
        "if every rank does as run before measured: 200.0 images/s of each of its 8 ranks" in said
    )
    assert "not measured" not in said
    assert total_cost([plan, plan]).startswith("all 2 runs: about ")
