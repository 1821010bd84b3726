"""A run on the private cluster as an onlooker sees it, and whether it is the same as another."""

import json
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from private_cluster import PrivateCluster
from safetensors.torch import load_file

from data_tools.build import main as build
from launch.ledger import Attempt, read_attempts
from launch.snapshot import CODE_FOLDERS, ROOT
from launch.submit import read_job
from pretrain.checkpoint.resume import newest_valid
from pretrain.run_directory import RunDirectory

PATIENCE_SECONDS = 300
TIME_LIMIT_MINUTES = 120
EPOCH_STEPS = 12
CLASSES = 4
_BATCH = 16
_CONFIG = """\
data: {{path: {shards}, workers_per_rank: 1}}
model: {{variant: swin_t, embed_dim: 32, depths: [1, 1, 2, 1], heads: [1, 2, 4, 8],
         image_size: 64, window_size: 2, num_classes: {classes}, drop_path: 0.1}}
optim: {{lr: 1.0e-3}}
schedule: {{epochs: {epochs}, warmup_epochs: 0.5}}
batch: {{global_size: {batch}, micro_size_max: 8}}
augment: {{mix_group: 4}}
eval: {{every_epochs: 10, batch_size_per_rank: 16}}
checkpoint: {{every_steps: 5, keep_last: 2}}
log: {{every_steps: 1}}
watchdog: {{start_seconds: 120, data_seconds: 60, step_seconds: 10, evaluation_seconds: 30,
            save_seconds: 60}}
wandb: {{mode: disabled}}
engine: {{precision: fp32, threads_per_rank: 1}}
runs_dir: {runs}
cluster: {{device: cpu, nodes: 2, ranks_per_node: 1, cpus_per_rank: 1}}
"""
_MAIN = """\
from pretrain import soak_trace  # noqa: F401
from pretrain.errors import run_command
from pretrain.rank_main import main

run_command(main)
"""
_SUBMIT = """\
import sys
from launch.submit import submit_slurm
from pretrain.run_directory import RunDirectory

submit_slurm(RunDirectory(sys.argv[1]))
"""


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Look again and again, with a patience that no healthy run needs.

    Raises:
        RuntimeError: in vain.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {PATIENCE_SECONDS} s in vain: {what}")
        time.sleep(0.05)


def make_project(root: Path, *, epochs: int) -> Path:
    """Shards, a config named ``soak``, and a copy of the source that notes its samples.

    Args:
        root: an empty directory.
        epochs: length of the runs, each of `EPOCH_STEPS` steps.

    Returns:
        The copy of the source.
    """
    source = root / "source"
    for folder in CODE_FOLDERS:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", source)
    shutil.copy(Path(__file__).with_name("soak_trace.py"), source / "pretrain")
    (source / "pretrain" / "__main__.py").rename(source / "pretrain" / "rank_main.py")
    (source / "pretrain" / "__main__.py").write_text(_MAIN)
    site = f"executor: slurm\npartition: main\ntime_limit_minutes: {TIME_LIMIT_MINUTES}\n"
    (source / "configs" / "clusters" / "slurm.yaml").write_text(site)
    text = _CONFIG.format(
        shards=_make_shards(root), classes=CLASSES, batch=_BATCH, epochs=epochs, runs=root / "runs"
    )
    (source / "configs" / "soak.yaml").write_text(text)
    return source


def _make_shards(root: Path) -> Path:
    rng = np.random.default_rng(0)
    counts = {"train": _BATCH * EPOCH_STEPS // CLASSES, "validation": 5}
    for split, count in counts.items():
        for label in range(CLASSES):
            folder = root / "images" / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for index in range(count):
                size = rng.integers(40, 90, 2)
                pixels = rng.normal(60 + 45 * label, 30, (*size, 3)).clip(0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.JPEG", quality=90)
    arguments = ["imagefolder", str(root / "images"), str(root / "shards"), "--name", "soak"]
    if build(arguments) != 0:
        raise RuntimeError("the shards cannot be built")
    return root / "shards"


class WatchedRun:
    """One run of the config ``soak``, looked at from outside.

    Args:
        source: of `make_project`.
        name: of the run.
        cluster: where it runs.
    """

    def __init__(self, source: Path, name: str, cluster: PrivateCluster) -> None:
        self.directory = RunDirectory(source.parent / "runs" / name)
        self.cluster = cluster
        self._command = [sys.executable, str(source / "launch" / "slurm.py")]
        self._command += ["--config", "soak", "--name", name, "--cluster", "slurm"]

    def launch(self, *overrides: str) -> str:
        """Type the command; what it prints.

        Raises:
            RuntimeError: it refuses.
        """
        return _printed(self.start_launch(*overrides))

    def start_launch(self, *overrides: str) -> subprocess.Popen[str]:
        """Type the command and do not wait."""
        return subprocess.Popen(
            [*self._command, *overrides],
            cwd=self.directory.path.parent.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def launch_twice(self) -> list[str]:
        """Type the command twice at the same moment; what each prints."""
        return [_printed(process) for process in [self.start_launch() for _ in range(2)]]

    def start_second_supervisor(self) -> subprocess.Popen[bytes]:
        """Put another job for the same run into the queue, past everything that prevents it."""
        command = [sys.executable, "-c", _SUBMIT, str(self.directory.path)]
        return subprocess.Popen(command, cwd=self.directory.code_path)

    def attempt(self) -> Attempt | None:
        """The newest attempt, None before the first."""
        attempts = read_attempts(self.directory)
        return attempts[-1] if attempts else None

    def job(self) -> str:
        """The job that trains, or trained last."""
        attempt = self.attempt()
        if attempt is not None:
            return attempt.job
        submitted = read_job(self.directory)
        if submitted is None:
            raise RuntimeError(f"{self.directory.path}: nothing was submitted")
        return submitted.job_id

    def field(self, name: str) -> str:
        """What Slurm knows about that job, empty where it does not answer."""
        command = ["scontrol", "-o", "show", "job", self.job()]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        parts = (word.partition("=") for word in answer.stdout.split())
        return {key: value for key, _, value in parts}.get(name, "")

    def job_seconds(self) -> int:
        """For how long the job has been running, since it last started."""
        hours, minutes, seconds = map(int, self.field("RunTime").split(":"))  # none takes a day
        return 3600 * hours + 60 * minutes + seconds

    def is_being_ended(self) -> bool:
        """Whether Slurm is about to take the job off its nodes, or has."""
        return self.field("JobState") != "RUNNING" or self.field("PreemptTime") != "None"

    def nodes(self) -> list[str]:
        """Nodes of the job, the supervisor's first."""
        command = ["scontrol", "show", "hostnames", self.field("NodeList")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    def newest_record(self) -> dict[str, Any]:
        """The last whole line of the record; step 0 of attempt 0 before the first."""
        try:
            with self.directory.metrics_path.open("rb") as file:
                file.seek(max(0, self.directory.metrics_path.stat().st_size - 4096))
                lines = file.read().split(b"\n")[:-1]
            return json.loads(lines[-1])
        except (FileNotFoundError, IndexError, ValueError):
            return {"step": 0, "attempt": 0, "time": 0.0}

    def rank_processes(self) -> list[int]:
        """Process ids of the ranks, without those of their loaders."""
        return [
            process
            for process in self.cluster.processes()
            if f"--run\0{self.directory.path}".encode() in _read(process, "cmdline")
            and _parent_name(process) == b"slurmstepd\n"
        ]

    def wait_until_done(self) -> None:
        """Wait for the end, in which nothing may be given up.

        Raises:
            RuntimeError: it comes to a bad end.
        """
        while not self.directory.is_done():
            attempt = self.attempt()
            if attempt is not None and attempt.next == "give_up":
                raise RuntimeError(f"attempt {attempt.number}: {attempt.reason}")
            wait_until(self._moved(), "training to go on")
        wait_until(lambda: (self.attempt() or _none()).next == "done", "the end of the attempt")

    def _moved(self) -> Callable[[], bool]:
        before, attempt = self.newest_record()["step"], self.attempt()
        return lambda: (
            self.directory.is_done()
            or self.newest_record()["step"] != before
            or self.attempt() != attempt
        )

    def samples(self) -> dict[int, dict[int, dict[int, list[list[int]]]]]:
        """What was consumed, by attempt, step and rank: rows of id, seed and pixels' checksum."""
        found: dict[int, dict[int, dict[int, list[list[int]]]]] = {}
        for path in sorted(self.directory.attempts_dir.glob("*/samples_rank_*.jsonl")):
            steps = found.setdefault(int(path.parent.name), defaultdict(dict))
            for line in path.read_text().splitlines():
                try:
                    record = json.loads(line)
                except ValueError:  # torn by a kill
                    continue
                steps[record["step"]][int(path.stem[-3:])] = record["samples"]
        return found


def differences(run: WatchedRun, twin: WatchedRun) -> list[str]:
    """Where a run is not its uninterrupted twin to the bit: samples, record, state, weights."""
    return [
        *_different_samples(run, twin),
        *_different_records(run, twin),
        *_different_tensors("checkpoint", final_state(run), final_state(twin)),
        *_different_tensors("export", exported(run), exported(twin)),
    ]


def _different_samples(run: WatchedRun, twin: WatchedRun) -> list[str]:
    (expected,) = twin.samples().values()
    wrong: list[str] = []
    whole: set[int] = set()
    for attempt, steps in run.samples().items():
        for step, ranks in steps.items():
            if any(ranks[rank] != expected[step].get(rank) for rank in ranks):
                wrong.append(f"attempt {attempt}, step {step}: other samples than the twin's")
            if ranks.keys() == expected[step].keys():
                whole.add(step)
    return wrong + [f"step {step}: never trained on" for step in sorted(expected.keys() - whole)]


def _different_records(run: WatchedRun, twin: WatchedRun) -> list[str]:
    mine, other = records(run), records(twin)
    if [line["step"] for line in mine] != [line["step"] for line in other]:
        return [f"metrics.jsonl: {len(mine)} lines, the twin has {len(other)}, or other steps"]
    pairs = zip(mine, other, strict=True)
    return [f"metrics.jsonl: step {line['step']}" for line, twins in pairs if line != twins]


def records(run: WatchedRun) -> list[dict[str, Any]]:
    """The record without what differs between any two runs: times and memory."""
    lines = run.directory.metrics_path.read_text().splitlines()
    measured = ("time", "attempt", "run/", "perf/", "memory/")
    return [
        {key: value for key, value in json.loads(line).items() if not key.startswith(measured)}
        for line in lines
    ]


def final_state(run: WatchedRun) -> dict[str, torch.Tensor]:
    """Weights and moments of the newest checkpoint, which must be sound."""
    reader, refusals = newest_valid(run.directory.checkpoints_dir)
    if reader is None or refusals:
        raise RuntimeError(f"{run.directory.checkpoints_dir}: {refusals}")
    kinds = ("master", "exp_avg", "exp_avg_sq")
    state = {f"{kind}|{name}": reader.full(kind, name) for kind in kinds for name in reader.shapes}
    return {"step": torch.tensor(reader.step), **state}


def exported(run: WatchedRun) -> dict[str, torch.Tensor]:
    """The finished weights."""
    return load_file(run.directory.export_dir / "model.safetensors")


def _different_tensors(
    what: str, mine: dict[str, torch.Tensor], other: dict[str, torch.Tensor]
) -> list[str]:
    if mine.keys() != other.keys():
        return [f"{what}: other names"]
    return [
        f"{what}: {name}"
        for name, value in mine.items()
        if value.numpy().tobytes() != other[name].numpy().tobytes()
    ]


def _printed(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    if process.returncode != 0:
        raise RuntimeError(f"{process.args}: exit code {process.returncode}: {output}")
    return output


def _none() -> Attempt:
    raise RuntimeError("the ledger is empty")


def _read(process: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{process}/{name}").read_bytes()
    except OSError:
        return b""


def _parent_name(process: int) -> bytes:
    status = _read(process, "stat")
    return _read(int(status.rpartition(b")")[2].split()[1]), "comm") if status else b""
