"""The commands of docs/launching.md, typed in order on a real cluster, with fake ranks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from fake_project import FakeProject, clean_environment

from launch.snapshot import ROOT

SECTION = "## A new cluster in five minutes"
SITE = "executor: slurm\npartition: main\ngpus_per_node: 8\ncpus_per_rank: 1\ndevice: auto\n"


def commands() -> list[str]:
    text = (ROOT / "docs" / "launching.md").read_text()
    (section,) = re.findall(rf"{SECTION}\n(.*?)\n## ", text, re.DOTALL)
    blocks = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines()]


@pytest.fixture
def project(slurm: Path, tmp_path: Path) -> FakeProject:
    made = FakeProject(tmp_path)
    first = (made.root / "configs" / "first.yaml").read_text()
    first = first.replace("device: cpu, ranks_per_node: 2, nodes: 1", "nodes: 1")
    demo = first.replace("nodes: 1", "device: cpu, ranks_per_node: 1")
    (made.root / "configs" / "demo.yaml").write_text(demo.replace(str(made.runs), "runs"))
    run = first.replace("global_size: 8", "global_size: 32").replace(str(made.runs), "runs")
    (made.root / "configs" / "swin_l_22k.yaml").write_text(run)
    return made


@pytest.mark.slow
def test_every_command_of_the_first_five_minutes(project: FakeProject) -> None:
    said: dict[str, str] = {}
    typed = commands()
    assert len(typed) > 9
    for command in typed:
        long = "nodes=2" in command  # still there when it is asked about and stopped
        project.set_ranks(100_000 if long else 40, step_seconds=0.02)
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=project.root,
            env=clean_environment()
            | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        said[command] = done.stdout + done.stderr
        assert done.returncode == 0, f"{command}\n{said[command]}"
        if command.startswith("cp "):
            (project.root / command.split()[-1]).write_text(SITE)  # filled in
    last = {command.split()[2]: text for command, text in said.items() if "runs.py" in command}
    assert "swin_l_22k" in last["list"]
    assert "saved" in last["stop"]
    assert "stopped" in last["why"]
    assert "16 = 2 nodes x 8" in said[next(command for command in typed if "--plan" in command)]
    assert "done at step 40" in said[next(command for command in typed if "--follow" in command)]
    assert "submitted as job" in last["resume"]
