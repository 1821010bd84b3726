"""The directory of a run's checkpoints, as training sees it: takes a snapshot, writes it, tells.

Writing may happen in a thread beside the training one, which then loses no more than the copy of
the state to host memory. The ranks' threads agree over a process group of their own, so that their
collectives can neither wait for training's nor hold them up.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed import ProcessGroup

from pretrain import dist
from pretrain.checkpoint.agreement import Agreement
from pretrain.checkpoint.commit import Commit, Keep, discard
from pretrain.checkpoint.layout import CheckpointManifest, step_of
from pretrain.checkpoint.ownership import check_owner, number_of, take_over
from pretrain.checkpoint.snapshot import Snapshot
from pretrain.errors import CheckpointError
from pretrain.files import sync
from pretrain.world import World


@dataclass(frozen=True)
class Finished:
    """How a save ended.

    Attributes:
        step: optimizer steps taken when the state was copied.
        directory: the checkpoint.
        error: why there is none; None where it is on the disk.
        write_seconds: from the copy to the end of the commit, on this rank.
        waited_seconds: of which the training thread waited before it could go on to its next save.
    """

    step: int
    directory: Path
    error: CheckpointError | None
    write_seconds: float
    waited_seconds: float = 0.0


class CheckpointStore:
    """A directory of checkpoints, shared by all ranks. After `pretrain.dist.initialize`.

    Args:
        directory: holds one directory per checkpoint, on a file system that every rank sees;
            created by the first save, or by `claim`.
        world: the place of this rank.
        keep_last: newest checkpoints kept, at least 1.
        keep_best: checkpoints with the highest accuracy kept besides.
        keep_every_steps: checkpoints at multiples of this step are kept for ever.
        background: write in a thread what need not be waited for.
    """

    def __init__(
        self,
        directory: Path,
        *,
        world: World,
        keep_last: int,
        keep_best: int = 0,
        keep_every_steps: int | None = None,
        background: bool = False,
    ) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last: expected at least 1, got {keep_last}")
        self._directory = directory
        self._world = world
        self._keep = Keep(keep_last, keep_best, keep_every_steps)
        self._snapshot = Snapshot()
        self._area: str | None = None
        # Made now: a rank that dies while its peers connect is only noticed by their timeout.
        self._group = dist.new_control_group() if background else None
        self._running: Future[Finished] | None = None
        self._finished: list[Finished] = []

    def claim(self, attempt: int = 1) -> str:
        """Take the directory over from every attempt before. Every rank.

        Before it looks for the checkpoint to go on from, so that nothing newer can appear.

        Args:
            attempt: number of this life of the run.

        Returns:
            Name of this attempt's working directory in it.

        Raises:
            CheckpointError: it cannot be written, on every rank alike.
        """
        agreement = Agreement(self._directory, world=self._world)
        self._area = area = str(agreement.on_rank_zero(lambda: take_over(self._directory, attempt)))
        return area

    def check_owner(self) -> None:
        """Make sure that no other attempt has taken the directory over. Any rank.

        Raises:
            OwnershipError: one has, and nothing of this attempt's counts any more.
        """
        if self._area is not None:
            check_owner(self._directory, self._area)

    def save(
        self,
        step: int,
        fragments: Mapping[str, Tensor],
        *,
        shapes: Mapping[str, tuple[int, ...]],
        state: Mapping[str, Any],
        samples_consumed: int,
        config_sha256: str,
        classes: Sequence[str],
        accuracy_fraction: float | None = None,
        wait: bool = True,
        before_commit: Callable[[], None] = lambda: None,
    ) -> Path:
        """Save the state after ``step`` optimizer steps. Every rank.

        Waits for the save before, if one is still being written. A sound checkpoint of the same
        step and config is kept as it is. Afterwards rank zero deletes what is not to be kept.

        Args:
            step: optimizer steps taken, skipped ones included.
            fragments: this rank's part, flat tensors by ``kind|parameter name|start``; copied.
            shapes: full shape of every parameter by name.
            state: counters to restore, JSON values; rank zero's are saved.
            samples_consumed: samples trained on so far.
            config_sha256: digest of the run's config.
            classes: ordered WordNet ids of the head's rows.
            accuracy_fraction: top-1 measured after this very step, 0 to 1.
            wait: return when it is on the disk. Otherwise, in a store that writes in the
                background, once the state is copied; `finished` tells how it ended.
            before_commit: called on rank zero, perhaps in another thread, when all but the commit
                is done.

        Returns:
            The checkpoint's directory, which need not exist yet where nobody waited.

        Raises:
            CheckpointError: it could not be written, on every rank alike and whichever rank had
                the problem; older checkpoints are untouched. Not from the background.
        """
        self.wait()
        area = self.claim() if self._area is None else self._area
        self._snapshot.take(fragments)
        manifest = CheckpointManifest(
            step=step,
            samples_consumed=samples_consumed,
            world_size=self._world.size,
            config_sha256=config_sha256,
            classes=tuple(classes),
            shapes={name: tuple(shape) for name, shape in shapes.items()},
            state=dict(state),
            files={},
            attempt=number_of(area),
            accuracy_fraction=accuracy_fraction,
        )
        where = self._directory, self._world, area
        commit = Commit(*where, manifest, self._snapshot, self._keep, before_commit)
        if wait or self._group is None:
            return self._carry_out(commit)
        return self._begin(commit, self._agreement(self._group))

    def delete_after(self, step: int) -> None:
        """Delete the checkpoints of later steps, sound or not. Every rank.

        Raises:
            CheckpointError: one could not be deleted, on every rank alike.
        """
        self.wait()
        area = self.claim() if self._area is None else self._area

        def delete() -> None:
            for path in self._directory.iterdir():
                if (step_of(path.name) or 0) > step:
                    discard(path, self._directory / area)
            sync(self._directory)

        self._agreement(None).on_rank_zero(delete)

    def finished(self) -> list[Finished]:
        """Return how saves ended since the last call; waits for none. Any rank.

        A failed save that was not in the background raised its error and is not told again.
        """
        if self._running is not None and self._running.done():
            self.wait()
        told, self._finished = self._finished, []
        return told

    def _carry_out(self, commit: Commit) -> Path:
        finished = _run(commit, self._agreement(None))
        if finished.error is not None:
            raise finished.error
        self._finished.append(finished)
        return commit.final

    def _begin(self, commit: Commit, agreement: Agreement) -> Path:
        running: Future[Finished] = Future()

        def work() -> None:
            try:
                running.set_result(_run(commit, agreement))
            except BaseException as error:  # noqa: BLE001 - raised again in the training thread
                running.set_exception(error)

        self._running = running
        # A daemon: an exit with an error does not wait for a disk, or for ranks that are gone.
        threading.Thread(target=work, name=f"save {commit.final.name}", daemon=True).start()
        return commit.final

    def _agreement(self, group: ProcessGroup | None) -> Agreement:
        return Agreement(self._directory, world=self._world, area=self._area, group=group)

    def wait(self) -> None:
        """Wait for the save in the background, if there is one. Every rank."""
        if self._running is None:
            return
        began = time.monotonic()
        running, self._running = self._running, None
        finished = running.result()
        waited = time.monotonic() - began
        self._finished.append(replace(finished, waited_seconds=waited))


def _run(commit: Commit, agreement: Agreement) -> Finished:
    began = time.monotonic()
    error = None
    try:
        commit.run(agreement)
    except CheckpointError as problem:
        error = problem
    seconds = time.monotonic() - began
    return Finished(commit.manifest.step, commit.final, error, seconds)
