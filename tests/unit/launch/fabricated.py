"""Run directories as launches and kills leave them, made by hand."""

import hashlib
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from launch.ledger import Next, Outcome, append_end, append_start
from launch.submit import Job, write_job
from pretrain.checkpoint.layout import KINDS, CheckpointManifest, SavedFile, directory_name
from pretrain.config.schema import RunConfig
from pretrain.run_directory import RunDirectory

PLAN = {"global_batch": 8, "total_steps": 1000, "nodes": 1, "ranks_per_node": 2}


def make_config(runs_dir: Path, name: str, **sections: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": name,
            "runs_dir": str(runs_dir),
            "data": {"path": "/data"},
            "model": {"variant": "swin_t", "image_size": 32, "window_size": 4, "num_classes": 2},
            "optim": {"lr": 1e-3},
            "schedule": {"epochs": 1},
            "batch": {"global_size": 8, "micro_size_max": 4},
            **sections,
        }
    )


def make_run(
    runs_dir: Path, name: str = "first", *, executor: str | None = "local", job: str = "7"
) -> RunDirectory:
    """A run that was launched; its job is gone unless Slurm says otherwise."""
    run = RunDirectory(runs_dir / name)
    run.create(make_config(runs_dir, name), json.dumps(PLAN))
    if executor is not None:
        log = run.submitit_dir / f"{job}_0_log.out"
        record = {"executor": executor, "job_id": job, "host": os.uname().nodename}
        record |= {"time": time.time() - 100, "log": str(log)}
        write_job(run, Job(**record))
    return run


def add_attempt(
    run: RunDirectory,
    number: int,
    *,
    outcome: Outcome | None = "stopped",
    next_action: Next = "stop",
    step: int | None = None,
    job: str = "7",
    reason: str = "why",
) -> None:
    run.attempt_dir(number).mkdir(parents=True)
    for rank in range(2):
        run.rank_log(number, rank).write_text(f"rank {rank} of attempt {number}\n")
    (run.attempt_dir(number) / "supervisor.log").write_text(f"supervisor of attempt {number}\n")
    append_start(run, number, job=job, host="n1", checkpoint_step=None)
    if outcome is not None:
        end = {"checkpoint_step": step, "reason": reason, "culprit_rank": None}
        append_end(run, number, outcome=outcome, next_action=next_action, **end)


def add_progress(run: RunDirectory, **values: object) -> None:
    progress = {
        "state": "training",
        "step": 120,
        "total_steps": 1000,
        "epoch": 1.5,
        "epochs": 12.0,
        "steps_per_epoch": 80,
        "images_per_second": 80.0,
        "images_per_second_per_device": 40.0,
        "data_wait_fraction": 0.05,
        "loss": 0.25,
        "accuracy_fraction": 0.625,
        "evaluated_fraction": None,
        "eval_top1_fraction": None,
        "probe_top1_fraction": None,
        "eta_seconds": 3600.0,
        "last_checkpoint_step": 100,
        "time": time.time(),
        "attempt": 1,
    }
    run.progress_path.write_text(json.dumps(progress | values))


def add_checkpoint(run: RunDirectory, step: int, *, sound: bool = True) -> Path:
    """A checkpoint of one parameter, whole to the last byte unless told otherwise."""
    path = run.checkpoints_dir / directory_name(step)
    path.mkdir(parents=True)
    keys = [f"{kind}|weight|0" for kind in KINDS]
    entries = {
        key: {"dtype": "F32", "shape": [2], "data_offsets": [8 * index, 8 * index + 8]}
        for index, key in enumerate(keys)
    }
    header = json.dumps(entries).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(8 * len(keys))
    digest = hashlib.sha256(content).hexdigest()
    (path / "rank_00000.safetensors").write_bytes(content if sound else content[:-1] + b"x")
    saved = SavedFile(len(content), digest, dict.fromkeys(keys, 2))
    manifest = CheckpointManifest(
        step=step,
        samples_consumed=8 * step,
        world_size=1,
        config_sha256="0",
        classes=("a", "b"),
        shapes={"weight": (2,)},
        state={},
        files={"rank_00000.safetensors": saved},
    )
    (path / "manifest.json").write_text(manifest.to_text())
    return path


def contents(path: Path) -> dict[str, bytes]:
    """Every file below a directory with what is in it, locks left out."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.suffix != ".lock"
    }


def job_fields(run: RunDirectory) -> dict[str, object]:
    return asdict(Job(**json.loads(run.job_path.read_text())))
