"""Whether the loader keeps up, by hand and as the plan says it."""

import math
import os
import re
from pathlib import Path

import pytest

from pretrain.config.load import load_run
from pretrain.plan.derive import make_plan
from pretrain.plan.loading import IMAGES_PER_SECOND_PER_CORE, loading_of
from pretrain.plan.render import render
from pretrain.plan.resources import Resources

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "loader.md"
LOCAL = ["cluster.executor=local", "cluster.cpus_per_rank=null"]


def loading(rate, *overrides, ranks_per_node=8):
    config = load_run("swin_t_22k", overrides, cluster="slurm")
    return loading_of(config, rate, ranks_per_node)


def loading_row(*overrides, device="cuda"):
    config = load_run("swin_t_22k", overrides, cluster="slurm")
    plan = make_plan(config, None, Resources(device, 1, 8), free_disk_bytes=0)
    lines = [line for line in render(config, plan).splitlines() if line.startswith("  loading")]
    assert len(lines) == (device == "cuda")
    return lines[0] if lines else ""


def test_the_rate_of_a_core_is_what_the_benchmark_says():
    row = next(line for line in BENCHMARK.read_text().splitlines() if "**swin-pretrain**" in line)
    cpu_milliseconds = float(row.split("|")[2].split()[0])
    assert round(1000 / cpu_milliseconds) == IMAGES_PER_SECOND_PER_CORE


def test_cores_by_hand():
    at_rate = loading(3000, "data.images_per_second_per_core=500")
    assert at_rate.cores_needed == 6
    assert at_rate.images_per_second_max == 8 * 500  # 8 processes, 12 cores
    assert at_rate.keeps_up
    assert not loading(4001, "data.images_per_second_per_core=500").keeps_up


def test_a_core_of_each_rank_is_its_own():
    few = loading(3000, "data.images_per_second_per_core=500", "cluster.cpus_per_rank=6")
    assert few.images_per_second_max == 5 * 500
    assert not few.keeps_up
    assert loading(2500, "data.images_per_second_per_core=500", "cluster.cpus_per_rank=6").keeps_up


def test_no_loader_processes_load_nothing_beside_training():
    assert loading(1, "data.workers_per_rank=0").images_per_second_max == 0


def test_ranks_of_this_machine_share_its_cores():
    here = len(os.sched_getaffinity(0))
    assert loading(1, *LOCAL, ranks_per_node=1).cores == here
    assert loading(1, *LOCAL, ranks_per_node=here + 1).cores == 0
    assert loading(1, "cluster.cpus_per_rank=null").cores is None  # Slurm's to say


def test_the_plan_says_it_and_warns_where_it_is_too_little():
    enough = loading_row()
    assert "benchmarks/loader.md" in enough
    assert "12 cores, 8 loader processes" in enough
    assert "TOO FEW" not in enough
    short = loading_row("data.images_per_second_per_core=100")
    needed = re.search(r"([\d.]+) cores per rank", short)
    assert needed is not None
    workers = math.ceil(float(needed[1]))
    assert "(data.images_per_second_per_core)" in short
    assert "TOO FEW" in short
    assert "they load 800 images/s" in short
    asked = (f"data.workers_per_rank={workers}", f"cluster.cpus_per_rank={workers + 1}")
    assert short.endswith(" ".join(asked))
    assert "TOO FEW" not in loading_row("data.images_per_second_per_core=100", *asked)


@pytest.mark.parametrize("cores", ["null", "12"])
def test_what_is_left_to_slurm_is_said(cores):
    row = loading_row(f"cluster.cpus_per_rank={cores}")
    assert ("cores left to Slurm" in row) == (cores == "null")


def test_ranks_on_cpus_train_and_load_on_the_same_cores():
    assert loading_row(device="cpu") == ""
