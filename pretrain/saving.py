"""Saves of a run: what goes into a checkpoint, when one is due, and how each one ended."""

from collections.abc import Mapping
from dataclasses import dataclass

from pretrain.checkpoint.store import CheckpointStore
from pretrain.engine.engine import Engine
from pretrain.errors import CheckpointError, OwnershipError
from pretrain.guard import Guard
from pretrain.job import Job
from pretrain.metrics.clock import Clock
from pretrain.metrics.meter import Meter
from pretrain.metrics.names import accuracy_names
from pretrain.metrics.recorder import Recorder
from pretrain.recovery import compare_ranks
from pretrain.run_directory import learning_sha256


def open_store(job: Job) -> CheckpointStore:
    """Take a run's checkpoints over from every attempt before. Every rank.

    None of those can add a checkpoint or delete one any more.

    Raises:
        CheckpointError: the directory cannot be written.
    """
    keep = job.config.checkpoint
    store = CheckpointStore(
        job.run.checkpoints_dir,
        world=job.world,
        keep_last=keep.keep_last,
        keep_best=keep.keep_best,
        keep_every_steps=keep.keep_every_steps,
        background=keep.background,
    )
    store.claim(job.attempt)
    return store


@dataclass
class Saver:
    """Saves the parts of a run that have a state. Every rank makes every call, in order."""

    job: Job
    store: CheckpointStore
    engine: Engine
    recorder: Recorder
    clock: Clock
    meter: Meter
    guard: Guard
    _measured_step: int = -1
    _accuracy_fraction: float | None = None

    def note_accuracy(self, done: int, values: Mapping[str, float]) -> None:
        """Remember what was measured after ``done`` steps: the run's own split, else the probe."""
        names = accuracy_names(self.job.config.ema.given)
        self._accuracy_fraction = next((values[name] for name in names if name in values), None)
        self._measured_step = done

    def is_due(self, done: int) -> bool:
        """Whether state is saved after ``done`` steps, be they the last or not."""
        settings = self.job.config.checkpoint
        best = settings.keep_best > 0 and self._accuracy(done) is not None
        return best or done % settings.every_steps == 0

    def save(self, done: int, *, must: bool) -> None:
        """Save the state after ``done`` steps; one that ``must`` be saved is waited for.

        A periodic save that fails (a full disk) leaves the older checkpoints whole: training goes
        on and the event says so, at once or, from the background, after a later step.

        Raises:
            StorageError: the disk does not take a save that must be made.
            OwnershipError: another attempt has taken the run over.
            RanksDivergedError: the ranks' weights are not the same.
        """
        config = self.job.config
        with self.clock.phase("save"):
            compare_ranks(self.job, self.engine.weights_digest(), done)
            try:
                self.store.save(
                    done,
                    self.engine.live_fragments(),
                    shapes=self.engine.parameter_shapes(),
                    state={
                        "engine": self.engine.state(),
                        "forecast": self.clock.forecast.state(),
                        "meter": self.meter.state(),
                        "guard": self.guard.state(),
                        "data": self.job.data_fingerprint,
                    },
                    samples_consumed=done * self.job.plan.global_batch,
                    config_sha256=learning_sha256(config),
                    classes=self.job.manifest.classes,
                    accuracy_fraction=self._accuracy(done),
                    wait=must,
                    # What the checkpoint implies must not be lost when the machine is.
                    before_commit=self.recorder.sync,
                )
            except CheckpointError as error:
                if must or isinstance(error, OwnershipError):
                    raise
                self._tell_failure(done, error)
        self.report(done)

    def settle(self, done: int) -> None:
        """Wait for the save that is still being written, and say how it ended."""
        with self.clock.phase("save"):
            self.store.wait()
        self.report(done)

    def report(self, done: int) -> None:
        """Say how saves ended since the last call; one still being written is not waited for.

        Raises:
            OwnershipError: another attempt has taken the run over.
        """
        for saved in self.store.finished():
            self.clock.count_save(
                write_seconds=saved.write_seconds, wait_seconds=saved.waited_seconds
            )
            if isinstance(saved.error, OwnershipError):
                raise saved.error
            if saved.error is None:
                self.recorder.event(
                    "checkpoint_saved", step=saved.step, directory=str(saved.directory)
                )
                self.recorder.progress(done, "training", last_checkpoint_step=saved.step)
            else:
                self._tell_failure(saved.step, saved.error)

    def _accuracy(self, done: int) -> float | None:
        return self._accuracy_fraction if self._measured_step == done else None

    def _tell_failure(self, step: int, error: CheckpointError) -> None:
        self.recorder.event("checkpoint_failed", step=step, reason=str(error))
