"""Work that all ranks must know the outcome of before any of them goes on."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed import ProcessGroup

from pretrain import dist
from pretrain.checkpoint.layout import step_of
from pretrain.checkpoint.ownership import check_owner
from pretrain.errors import CheckpointError, OwnershipError, StorageError
from pretrain.world import World

# The gravest first: that one is raised where ranks had several.
_ERRORS = {"ownership": OwnershipError, "content": CheckpointError, "storage": StorageError}


class Agreement:
    """Runs work on the ranks and makes every rank raise what one of them did.

    Args:
        directory: of the checkpoints, for messages about its disk.
        world: the place of this rank.
        area: name of this attempt's working directory; None before it has one.
        group: where the ranks speak; None in the main thread.
    """

    def __init__(
        self,
        directory: Path,
        *,
        world: World,
        area: str | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        self._directory = directory
        self._world = world
        self._area = area
        self._group = group

    def on_rank_zero(self, work: Callable[[], Any]) -> Any:
        """Run work on rank zero alone; every rank gets its answer, or its error. Every rank."""
        return self.of_all(work if self._world.rank == 0 else lambda: None)[0]

    def of_all(self, work: Callable[[], Any]) -> list[Any]:
        """Run work here and return every rank's JSON-able answer. Every rank.

        Raises:
            OwnershipError: another attempt has taken the directory over.
            StorageError: a disk did not take something, and nothing else was wrong.
            CheckpointError: some rank's work raised it.
        """
        value, kind, problem = None, "", ""
        try:
            value = work()
        except CheckpointError as error:
            kind, problem = _kind_of(error), str(error)
        except OSError as error:
            kind, problem = self._explain(error)
        outcomes = dist.gather_objects(
            {"value": value, "kind": kind, "problem": problem}, group=self._group
        )
        problems = [
            f"checkpoint, rank {rank}: {outcome['problem']}"
            for rank, outcome in enumerate(outcomes)
            if outcome["kind"]
        ]
        if problems:
            kinds = {outcome["kind"] for outcome in outcomes}
            raise next(error for kind, error in _ERRORS.items() if kind in kinds)(
                "\n".join(problems)
            )
        return [outcome["value"] for outcome in outcomes]

    def _explain(self, error: OSError) -> tuple[str, str]:
        """Say what an error of the file system means, and of which kind it is."""
        if self._area is not None:
            try:
                check_owner(self._directory, self._area)
            except OwnershipError as taken:
                return "ownership", str(taken)
        message = f"{error.filename or self._directory}: cannot be written ({error.strerror})"
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(self._directory).free
            message += f"; {free / 2**20:.0f} MiB are free there"
        return "storage", f"{message}; {left_untouched(self._directory)}"


def left_untouched(directory: Path) -> str:
    """Say what a failed save leaves: older checkpoints, or none."""
    count = 0
    with contextlib.suppress(OSError):
        count = sum(step_of(path.name) is not None for path in directory.iterdir())
    if count == 0:
        return "there is no older checkpoint"
    return f"{count} older checkpoint{'s are' if count > 1 else ' is'} untouched"


def _kind_of(error: CheckpointError) -> str:
    return next(kind for kind in ("ownership", "storage", "content") if _is(error, kind))


def _is(error: CheckpointError, kind: str) -> bool:
    return isinstance(error, _ERRORS[kind])
