"""What a person sees of the trials: a line for each, and the table. No torch."""

from collections.abc import Sequence

from pretrain.plan.memory import GIB
from pretrain.tune.candidates import Candidate
from pretrain.tune.trials import Failure, Measured, Row, Trials, is_faster

HEADINGS = ("settings", "images/s", "spread", "peak GiB", "estimate", "start s", "")
REASON_CHARACTERS = 90
FAILED = {
    "memory": "out of memory",
    "compile": "does not compile",
    "refused": "refused",
    "time": "too slow",
    "crash": "failed",
    "not tried": "not tried",
}


def outcome_text(outcome: Measured | Failure) -> str:
    """What came of one candidate, in one line."""
    if isinstance(outcome, Measured):
        return (
            f"{outcome.images_per_second:,.1f} images/s (±{outcome.spread_fraction:.1%}), "
            f"{outcome.peak_bytes / GIB:.2f} GiB, first step after {outcome.start_seconds:.0f} s"
        )
    reason = outcome.reason
    if len(reason) > REASON_CHARACTERS:
        reason = f"{reason[: REASON_CHARACTERS - 1]}…"
    return f"{FAILED[outcome.kind]}: {reason}"


def table(trials: Trials, own: Candidate, best: Row | None) -> str:
    """Return the trials as aligned lines, the fastest first and those without a rate last."""
    rows = sorted(trials.rows, key=lambda row: -row.rate)
    cells = [HEADINGS, *(_cells(row, trials, own, best) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS))]
    return "\n".join(_aligned(line, widths) for line in cells)


def _cells(row: Row, trials: Trials, own: Candidate, best: Row | None) -> tuple[str, ...]:
    outcome, label = row.outcome, row.candidate.label(own)
    estimate = f"{row.estimate_bytes / GIB:.2f}"
    if isinstance(outcome, Failure):
        return (label, "", "", "", estimate, "", outcome_text(outcome))
    notes = ["the config's own"] if row.candidate == own else []
    if row is best:
        notes.append("taken")
    elif not trials.fits(row):
        notes.append("too near to the device's memory")
    elif best is not None and row.rate_of_run > best.rate_of_run and not is_faster(row, best):
        notes.append("no faster within noise")
    elif best is not None and row.rate > best.rate:
        notes.append("starts too long for so short a run")
    return (
        label,
        f"{outcome.images_per_second:,.1f}",
        f"±{outcome.spread_fraction:.1%}",
        f"{outcome.peak_bytes / GIB:.2f}",
        estimate,
        f"{outcome.start_seconds:.0f}",
        ", ".join(notes),
    )


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    first, *numbers, note = line
    padded = [f"{cell:>{width}}" for cell, width in zip(numbers, widths[1:-1], strict=True)]
    return "  ".join([f"{first:<{widths[0]}}", *padded, note]).rstrip()
