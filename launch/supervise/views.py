"""The views of a run's record, brought up to its end once no attempt follows in this job."""

from collections.abc import Iterator

from launch.container import python_of_ranks
from launch.ledger import Next, read_attempts
from pretrain.config.schema import RunConfig
from pretrain.metrics.mirror.mirror import send_the_rest
from pretrain.metrics.report.process import write_last
from pretrain.run_directory import RunDirectory

EXIT_CODE = 1
"""By which Weights & Biases shows a run as failed."""


def wrap_up(run: RunDirectory, config: RunConfig, last: Next) -> Iterator[str]:
    """Bring the report and Weights & Biases up to date; nothing that fails there is raised.

    Args:
        run: which nothing trains any more.
        config: its config.
        last: what followed the last attempt.

    Yields:
        What could not be done, a line each.
    """
    problem = write_last(run, done=last == "done")
    if problem is not None:
        yield f"no report: {problem}"
    problem = _end_mirror(run, config, last)
    if problem is not None:
        yield f"Weights & Biases does not have the end of the run: {problem}"


def _end_mirror(run: RunDirectory, config: RunConfig, last: Next) -> str | None:
    """Send what attempts that ended badly could not; where all went well, rank zero sent it."""
    if last not in ("give_up", "stop") or read_attempts(run)[-1].outcome == "stopped":
        return None
    return send_the_rest(run.wandb_dir, EXIT_CODE, python=python_of_ranks(config))
