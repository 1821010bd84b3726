"""What a real cluster cannot give is refused before anything is written."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from fake_project import FakeProject

SLURM = ("--cluster", "slurm")
MISTAKES = {
    "cluster.partition=none": "cluster.partition: none: this cluster has ",
    "cluster.partition=brief": "cluster.time_limit_minutes: 20: partition brief allows at most 15",
    "cluster.partition=shut": "cluster.partition: partition shut is down",
    "cluster.nodes=3": "cluster.nodes: 3: partition main has 2 such nodes",
    "cluster.gpus_per_node=9": (
        "cluster.gpus_per_node: 9 GPUs of a node are asked for, and no node of partition main that "
        "has the rest has more than 8"
    ),
    "cluster.cpus_per_rank=5": "cluster.cpus_per_rank: 10 CPUs of a node are asked for",
    "cluster.memory_gib_per_node=9": "of partition main that has the rest has more than 7.8",
    "cluster.constraint=h200": "cluster.constraint: h200: no such node in partition main, which",
    "cluster.exclude=127.0.0.3": "sbatch refuses the job: ",
}


@pytest.fixture(scope="module")
def project(slurm: Path, tmp_path_factory: pytest.TempPathFactory) -> FakeProject:
    made = FakeProject(tmp_path_factory.mktemp("preflight"), nodes=2)
    site = made.root / "configs" / "clusters" / "slurm.yaml"
    site.write_text("executor: slurm\npartition: main\ntime_limit_minutes: 20\ndevice: auto\n")
    config = made.root / "configs" / "first.yaml"
    text = (
        config.read_text().replace("device: cpu, ", "").replace("global_size: 8", "global_size: 24")
    )
    config.write_text(text)
    for partition in ("brief Nodes=ALL MaxTime=15", "shut Nodes=ALL State=DOWN"):
        subprocess.run(
            ["scontrol", "create", *f"PartitionName={partition}".split()], check=True, timeout=60
        )
    return made


@pytest.mark.parametrize("override", MISTAKES)
def test_what_the_cluster_cannot_give_is_refused(project: FakeProject, override: str) -> None:
    code, output = project.launch("--config", "first", *SLURM, override)
    assert code == 2, output
    assert MISTAKES[override] in output
    assert [line for line in output.splitlines() if line.startswith("error: ")] != []
    assert "Traceback" not in output
    assert not project.runs.exists()


def wait_until_idle() -> None:
    deadline = time.monotonic() + 60
    command = ["sinfo", "-h", "-p", "main", "-o", "%T%D"]
    while subprocess.run(command, capture_output=True, text=True).stdout.strip() != "idle2":
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_what_it_can_give_but_not_now_is_a_warning(project: FakeProject) -> None:
    node = ["scontrol", "update", "nodename=127.0.0.3"]
    subprocess.run([*node, "state=drain", "reason=test"], check=True, timeout=60)
    try:
        code, output = project.launch("--config", "first", *SLURM, "--dry-run")
    finally:
        subprocess.run([*node, "state=resume"], check=True, timeout=60)
        wait_until_idle()
    assert code == 0, output
    assert "warning: partition main: only 1 of 2 such nodes take jobs now" in output
