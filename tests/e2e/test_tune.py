"""``python -m pretrain.tune`` as a person types it: a real engine on a thumbnail Swin."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from interrupt import hear_ctrl_c

ROOT = Path(__file__).parents[2]
TUNE = (sys.executable, "-m", "pretrain.tune", "--config", "demo_pretrain")
SETTLED = ("engine.compile=false", "engine.activation_checkpointing=none")
ALONE = ("cluster.ranks_per_node=1", "engine.threads_per_rank=1")
QUICK = (*ALONE, "--measured-seconds", "0.2")


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TUNE, *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=400,
        env=environment_of(**environment),
    )  # fmt: skip


def environment_of(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **more}


def plan(folder: Path, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "launch" / "slurm.py"), "--config", "demo_pretrain"]
    done = subprocess.run(
        [*command, "--cluster", "local", "--plan", *ALONE, *arguments],
        cwd=folder, capture_output=True, text=True, check=True, env=environment_of(),
    )  # fmt: skip
    return done.stdout + done.stderr


def test_it_measures_writes_a_file_and_the_plan_takes_it_up(tmp_path: Path):
    done = run(tmp_path, *QUICK, *SETTLED, "batch.micro_size_max=64")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout  # no terminal, so plain lines
    assert "for 1 rank and a global batch of 64" in done.stdout
    (path,) = (tmp_path / "runs" / "tuned").iterdir()
    assert f"written: {path}" in done.stdout
    tuned = yaml.safe_load(path.read_text())
    assert tuned["settings"]["batch.micro_size_max"] == 64
    assert tuned["instead_of"]["batch.micro_size_max"] == 32
    said = plan(tmp_path)
    assert "64 = 1 rank x 64 micro-batch x 1 accumulation" in said
    assert f"from {path} (tuned=none refuses it)" in said
    assert f"{tuned['images_per_second']:,.1f} images/s ({path})" in said
    assert str(path) not in plan(tmp_path, "tuned=none")


@pytest.mark.slow
def test_it_compares_the_micro_batches_that_divide(tmp_path: Path):
    """32, which the config has, and 64: the fastest is taken, and not within noise of its own."""
    done = run(tmp_path, *QUICK, *SETTLED)
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("\nsettings")[2]
    for size in (32, 64):
        assert f"micro-batch {size} " in table
    assert "the config's own" in table
    (path,) = (tmp_path / "runs" / "tuned").iterdir()
    tuned = yaml.safe_load(path.read_text())
    size = tuned["settings"]["batch.micro_size_max"]
    assert tuned["accumulation"] * size == 64
    assert "taken" in next(line for line in table.splitlines() if f"micro-batch {size} " in line)


@pytest.mark.slow
def test_candidates_that_do_not_compile_lack_memory_or_time_are_rows(tmp_path: Path):
    broken = tmp_path / "no-compiler"
    broken.write_text("#!/bin/sh\necho no compiler here >&2\nexit 1\n")
    broken.chmod(0o755)
    fixed = ("engine.activation_checkpointing=none", "batch.micro_size_max=32")
    cache = str(tmp_path / "cache")
    done = run(tmp_path, *QUICK, *fixed, CXX=str(broken), TORCHINDUCTOR_CACHE_DIR=cache)
    assert done.returncode == 0, done.stdout + done.stderr
    row = next(line for line in done.stdout.splitlines() if "compile true" in line)
    assert "does not compile: " in row
    assert "taken: batch.micro_size_max=32" in done.stdout
    assert "engine.compile=false" in done.stdout


@pytest.mark.slow
def test_a_candidate_that_the_system_refuses_memory_is_a_row(tmp_path: Path):
    """A limit on the address space, which the processes inherit: 32 fit, 32,768 do not."""
    large = ("batch.global_size=32768", "data.expected_train_samples=32768")
    limited = ["bash", "-c", 'ulimit -v 6000000; exec "$@"', "bash", *TUNE]
    done = subprocess.run(
        [*limited, *QUICK, *SETTLED, *large, "batch.micro_size_max=32768"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env=environment_of(),
    )  # fmt: skip
    rows = [line for line in done.stdout.splitlines() if "micro-batch 32768" in line]
    assert any("out of memory" in row for row in rows), done.stdout + done.stderr
    assert done.returncode == 2
    assert "none of 1 candidates works; the config's own: out of memory" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_an_interruption_leaves_nothing(tmp_path: Path):
    with subprocess.Popen(
        [*TUNE, *QUICK], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment_of(),
        preexec_fn=hear_ctrl_c,
    ) as tuning:  # fmt: skip
        assert tuning.stdout is not None
        assert "demo_pretrain on one" in tuning.stdout.readline()
        (child,) = children_of(tuning.pid)
        tuning.send_signal(signal.SIGINT)
        said, errors = tuning.communicate(timeout=120)
    assert tuning.returncode == 130
    assert "stopped: no file is written" in said
    assert errors == ""
    assert not (tmp_path / "runs").exists()
    assert gone(child)  # by itself where the signal came before its parent knew of it


def gone(pid: int) -> bool:
    for _ in range(300):
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.1)
    return False


def children_of(pid: int) -> list[int]:
    """The processes that one has started, waited for until there are any."""
    for _ in range(100):
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        if text.split():
            return [int(number) for number in text.split()]
        time.sleep(0.05)
    return []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ranks", "3"], "batch.global_size: 64 does not divide into 3 ranks"),
        (["--minutes", "0"], "--minutes, --candidate-minutes: expected 0.1 or more"),
        (["--cluster", "slurm", "cluster.device=cuda", "cluster.gpus_per_node=8"], "shows none"),
        (["engine.compil=true"], "did you mean 'engine.compile'?"),
        (["batch.micro_size_max=8"], "is less than augment.mix_group 32"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: list[str], said: str):
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
