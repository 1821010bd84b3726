"""The directory of one run: where everything is, whose it is, and how far it has come.

Nothing here imports torch; every process of a run and every tool that looks at one may use it.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pretrain.config.load import read_run, to_yaml
from pretrain.config.schema import RunConfig
from pretrain.errors import ConfigError, LaunchError
from pretrain.files import make_private, read_json, replace_text

MAY_CHANGE = (
    "runs_dir",
    "tuned",
    "cluster",
    "log",
    "wandb",
    "profile",
    "guard",
    "watchdog",
    "health",
    "checkpoint",
    "data.allow_pipe",
    "data.build",
    "data.build_automatically",
    "data.cache_dir",
    "data.cache_gib",
    "data.expected_train_samples",
    "data.images_per_second_per_core",
    "data.max_bad_fraction",
    "data.workers_per_rank",
    "data.prefetch_batches",
    "data.remote_retry_seconds",
    "data.remote_stall_seconds",
    "data.remote_transfers",
    "batch.micro_size_max",
    "eval.batch_size_per_rank",
    "eval.probe",
    "engine.activation_checkpointing",
    "engine.attention",
    "engine.collective_timeout_seconds",
    "engine.compile",
    "engine.cross_entropy",
    "engine.layer_norm",
    "engine.offload",
    "engine.overlap_augmentation",
    "engine.threads_per_rank",
    "engine.zero_stage",
    "optim.implementation",
    "results",
)
"""Sections and fields that may differ between attempts of one run: none changes what is learnt."""

DIFFERENCES_SHOWN = 5
_CHECKPOINT = re.compile(r"step_(\d+)")
_BEFORE_CONFIG = {"plan.json", "submit.lock", "supervisor.lock"}


class RunDirectory:
    """The paths of one run, by name. Constructing one creates nothing.

    Attributes:
        path: the directory itself, absolute.
        config_path: the resolved `RunConfig`, YAML; its presence makes the directory a run.
        plan_path: the derived numbers, JSON.
        environment_path: versions, host and commit at the time of launch, JSON.
        code_path: copy of the source the run uses.
        job_path: which submitted job has the run, JSON.
        attempts_path: ledger of attempts, one JSON object per line.
        attempts_dir: one directory of logs per attempt.
        progress_path: where training stands, JSON, replaced at most about once a second.
        metrics_path: recorded numbers, one JSON object per line.
        events_path: recorded events, one JSON object per line.
        rewinds_path: when training went back, and which batches it left out since, JSON.
        checkpoints_dir: holds ``step_00001000`` and so on; such a name exists only when complete.
        wandb_dir: what Weights & Biases writes.
        report_path: the run on one page, HTML, renewed while it trains.
        augmentation_path: what the model saw in its first step, PNG.
        by_class_path: accuracy by class and confusions of the newest evaluation, JSON.
        examples_dir: small pictures of images that the newest evaluation got wrong.
        profile_dir: traces of steps, and where their time and memory went.
        export_dir: the finished weights.
        evaluation_dir: what a run of results measured.
        converted_dir: and the weights it wrote in other layouts.
        submitit_dir: what submitit writes.
        failure_path: why the run was given up, for people; gone once it goes on.
        excluded_nodes_path: nodes that its jobs no longer take, and why, one JSON object per line.
        lock_path: held by the one supervisor that may run this directory.
        submit_lock_path: held by a launcher while it creates and submits.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.config_path = self.path / "config.yaml"
        self.plan_path = self.path / "plan.json"
        self.environment_path = self.path / "environment.json"
        self.code_path = self.path / "code"
        self.job_path = self.path / "job.json"
        self.attempts_path = self.path / "attempts.jsonl"
        self.attempts_dir = self.path / "attempts"
        self.progress_path = self.path / "progress.json"
        self.metrics_path = self.path / "metrics.jsonl"
        self.events_path = self.path / "events.jsonl"
        self.rewinds_path = self.path / "rewinds.json"
        self.checkpoints_dir = self.path / "checkpoints"
        self.wandb_dir = self.path / "wandb"
        self.report_path = self.path / "report.html"
        self.augmentation_path = self.path / "augmentation.png"
        self.by_class_path = self.path / "by_class.json"
        self.examples_dir = self.path / "examples"
        self.profile_dir = self.path / "profile"
        self.export_dir = self.path / "export"
        self.evaluation_dir = self.path / "evaluation"
        self.converted_dir = self.path / "converted"
        self.submitit_dir = self.path / "submitit"
        self.failure_path = self.path / "failure.txt"
        self.excluded_nodes_path = self.path / "excluded_nodes.jsonl"
        self.lock_path = self.path / "supervisor.lock"
        self.submit_lock_path = self.path / "submit.lock"

    def __repr__(self) -> str:
        return f"RunDirectory({str(self.path)!r})"

    @property
    def exists(self) -> bool:
        """Whether a run was created here."""
        return self.config_path.is_file()

    def attempt_dir(self, number: int) -> Path:
        """Directory of one attempt's logs; attempts count from 1."""
        return self.attempts_dir / f"{number:03d}"

    def rank_log(self, attempt: int, rank: int) -> Path:
        """Everything one rank printed in one attempt."""
        return self.attempt_dir(attempt) / f"rank_{rank:03d}.log"

    def stacks_path(self, attempt: int, rank: int) -> Path:
        """Where the threads of a rank stood when it no longer moved."""
        return self.attempt_dir(attempt) / f"stacks_rank_{rank:03d}.txt"

    def outcome_path(self, attempt: int) -> Path:
        """Where rank zero leaves the intent with which an attempt ended."""
        return self.attempt_dir(attempt) / "outcome.json"

    def heartbeat_path(self, attempt: int, node: str) -> Path:
        """What the first rank of a node is doing, JSON, renewed for as long as it lives."""
        return self.attempt_dir(attempt) / f"heartbeat_{node}.json"

    def ranks_path(self, attempt: int) -> Path:
        """What every rank found of its node before the first step, JSON."""
        return self.attempt_dir(attempt) / "ranks.json"

    def bad_ranks_path(self, attempt: int) -> Path:
        """Ranks whose node is at fault, with node and reason, JSON; written by rank zero."""
        return self.attempt_dir(attempt) / "bad_ranks.json"

    def check(self, config: RunConfig) -> None:
        """Make sure that ``config`` may run here. Writes nothing.

        Raises:
            ConfigError: the directory belongs to a run that learns something else.
            LaunchError: the path is taken by something that is no run, or is open to other users.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise LaunchError(f"{self.path}: expected a directory or nothing, got a file")
        self._check_private()
        if not self.exists:
            entries = sorted({entry.name for entry in self.path.iterdir()} - _BEFORE_CONFIG)
            if any(not name.endswith(".tmp") for name in entries):
                raise LaunchError(
                    f"{self.path}: holds {entries[0]} but no config.yaml, so it is no run; "
                    "choose another name (--name) or move it away"
                )
            return
        differences = differing_fields(self.read_config(), config)
        if differences:
            shown = differences[:DIFFERENCES_SHOWN]
            more = len(differences) - len(shown)
            lines = [f"{self.path}: belongs to a run with another config; choose another --name"]
            lines += [f"{field}: the run has {old!r}, got {new!r}" for field, old, new in shown]
            raise ConfigError("\n".join(lines + ([f"and {more} more fields"] if more else [])))

    def create(self, config: RunConfig, plan_json: str) -> None:
        """Create the directory, or take up the same run again with its changeable fields renewed.

        The directory is private to its owner: jobs execute what submitit pickles into it.

        Raises:
            ConfigError: the directory belongs to a run that learns something else.
            LaunchError: the path is taken by something that is no run, or is open to other users.
        """
        self.check(config)
        self.make()
        replace_text(self.plan_path, plan_json)
        replace_text(self.config_path, to_yaml(config))

    def make(self) -> None:
        """Make the bare directory, private to its owner, if it is not there.

        Raises:
            LaunchError: it cannot be made.
        """
        try:
            make_private(self.path)
        except OSError as error:
            raise LaunchError(
                f"{self.path}: cannot be made: {error.strerror}; give runs_dir=PATH"
            ) from None

    def read_config(self) -> RunConfig:
        """The run's config.

        Raises:
            LaunchError: there is no run here.
            ConfigError: config.yaml is damaged or of another version of this program.
        """
        if not self.exists:
            raise LaunchError(f"{self.path}: expected a run directory, found no config.yaml in it")
        return read_run(self.config_path)

    def read_progress(self) -> dict[str, Any] | None:
        """The newest progress.json, or None before there is one."""
        return read_json(self.progress_path)

    def read_outcome(self, attempt: int) -> dict[str, Any] | None:
        """What rank zero left at the orderly end of an attempt; None if it did not come to one."""
        return read_json(self.outcome_path(attempt))

    def leave_outcome(self, attempt: int, outcome: str, step: int) -> None:
        """Tell the supervisor why an attempt ends. Rank zero, when all is on the disk."""
        path = self.outcome_path(attempt)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps({"outcome": outcome, "step": step}) + "\n")

    def is_done(self) -> bool:
        """Whether training came to its end."""
        progress = self.read_progress()
        return progress is not None and progress.get("state") == "done"

    def newest_checkpoint_step(self) -> int | None:
        """Step of the newest checkpoint by name, unverified; None where there is none."""
        if not self.checkpoints_dir.is_dir():
            return None
        matches = (_CHECKPOINT.fullmatch(entry.name) for entry in self.checkpoints_dir.iterdir())
        return max((int(match[1]) for match in matches if match), default=None)

    def _check_private(self) -> None:
        status = self.path.stat()
        if status.st_uid != os.getuid():
            raise LaunchError(f"{self.path}: belongs to user id {status.st_uid}, not to you")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise LaunchError(
                f"{self.path}: other users may write to it, and jobs execute what is in it; "
                f"run: chmod go-w {self.path}"
            )


def differing_fields(old: RunConfig, new: RunConfig) -> list[tuple[str, Any, Any]]:
    """Fields that decide what is learnt and differ, as (dotted name, old value, new value)."""
    old_fields, new_fields = (
        dict(flatten(config.model_dump(mode="json"))) for config in (old, new)
    )
    return [
        (name, old_fields.get(name), new_fields.get(name))
        for name in sorted(old_fields.keys() | new_fields.keys())
        if not _may_change(name) and old_fields.get(name) != new_fields.get(name)
    ]


def learning_sha256(config: RunConfig) -> str:
    """Digest of the fields that decide what is learnt: equal for all attempts of one run."""
    fields = {
        name: value
        for name, value in flatten(config.model_dump(mode="json"))
        if not _may_change(name)
    }
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _may_change(name: str) -> bool:
    return any(name == field or name.startswith(field + ".") for field in MAY_CHANGE)


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every field of nested sections by its dotted name."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
