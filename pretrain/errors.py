"""The errors a user can cause, and how a command reports them: one line and an exit code."""

import sys
from collections.abc import Callable
from typing import NoReturn

EXIT_BAD_INPUT = 2
"""Exit code of every command that refuses its input."""
EXIT_HUNG = 71
"""Exit code of a rank that did not move for longer than its watchdog allows."""
EXIT_BAD_NODE = 72
"""Exit code of a rank that found a node unfit before the first step."""
EXIT_DIVERGED = 73
"""Exit code of a rank that found the ranks computing with different weights."""
EXIT_STORAGE = 74
"""Exit code where a disk did not take what had to be saved: another try may succeed."""


class PretrainError(Exception):
    """Base of all errors that a user can mend.

    The message says what, where, got, expected and what to do. Several problems found together are
    one line each.
    """


class ConfigError(PretrainError):
    """A config that cannot be read, validated or planned."""


class DataError(PretrainError):
    """Shards, manifests or images that are missing, damaged or contradictory."""


class ModelError(PretrainError):
    """Weights that do not fit the model they are meant for."""


class EngineError(PretrainError):
    """Training that cannot go on, such as too many non-finite steps in a row."""


class CheckpointError(PretrainError):
    """Saved state that cannot be written, found or trusted."""


class OwnershipError(CheckpointError):
    """Saved state that another attempt, which has taken the run over, alone may change."""


class StorageError(CheckpointError):
    """A disk that is full, away or read-only: nothing is wrong with what was to be saved."""


class LaunchError(PretrainError):
    """A job that cannot be submitted or supervised."""


class WandbError(PretrainError):
    """Weights & Biases does not answer, or refuses, what a person asked of it."""


class NodeHealthError(PretrainError):
    """A node that is broken, slow or unlike the others: the same job may do well without it."""


class RanksDivergedError(PretrainError):
    """Ranks that should compute with the same weights do not: a device or a wire is at fault.

    Nothing that a person typed: another attempt, from the newest checkpoint, may go well.
    """


class RefusedTogetherError(PretrainError):
    """What rank zero says for all ranks: this one ends with the same code, silently."""


_EXIT_CODES: dict[type[PretrainError], int] = {
    NodeHealthError: EXIT_BAD_NODE,
    RanksDivergedError: EXIT_DIVERGED,
    StorageError: EXIT_STORAGE,
}
"""Of errors that are no bad input."""


def run_command(main: Callable[[list[str]], int]) -> NoReturn:
    """Run a command's ``main`` on the arguments typed and exit with its code.

    A `PretrainError` becomes ``error: …`` on standard error and exit code 2, or another where it is
    no bad input: 72 a bad node, 73 different weights, 74 a disk. A closed output pipe (``| head``)
    ends quietly; Ctrl-C exits 130. Anything else is a defect and keeps its traceback.
    """
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except RefusedTogetherError:
        code = EXIT_BAD_INPUT
    except PretrainError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)  # noqa: T201
        code = _EXIT_CODES.get(type(error), EXIT_BAD_INPUT)
    except BrokenPipeError:
        sys.stderr.close()
        code = 0
    except KeyboardInterrupt:
        code = 130
    raise SystemExit(code)
