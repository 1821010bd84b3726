"""The Markdown that `benchmarks/step.py` writes, from what was measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from measurements import spread
from step_matrix import LIBRARIES, Cell, Library, Subject
from step_turns import PARTS, Measured, Row

from pretrain.models.cost import count_forward_macs
from pretrain.plan.devices import TRAINING_FLOP_PER_FORWARD_MAC, peak_flop_per_second

BASELINES: tuple[Library, ...] = ("timm", "torchvision", "transformers", "plain")
"""Ratios are to the first of them that was measured."""
EAGER_GOAL, COMPILED_GOAL, UTILISATION_GOAL = 2.0, 1.3, 0.4
"""Of Swin-L at 224 pixels, bf16, 21,841 classes, on a GPU like the H200."""
FACTS_TOLERANCE_FRACTION = 1e-3


def table(cell: Cell, measured: Measured, device_name: str | None) -> Iterator[str]:
    """One cell.

    Args:
        cell: what the rows have in common.
        measured: what came of it.
        device_name: of the GPU as torch gives it; None on a CPU.
    """
    gpu = device_name is not None
    references = {
        compiled: found
        for compiled in (False, True)
        if (found := baseline(measured.rows, compiled)) is not None
    }
    names = [
        f"{LIBRARIES[found.library]}'s, {'compiled' if compiled else 'eager'}"
        for compiled, found in references.items()
    ]
    columns = ["step", "images/s", *(f"images/s ÷ {name}" for name in names)]
    columns += ["ms", *PARTS, "host", "peak GiB"]
    columns += [] if gpu else ["CPU ms", *(f"CPU time of {name} ÷ its own" for name in names)]
    columns += ["issued in", "of the peak FLOP/s"] if gpu else []
    columns += ["of a product's FLOP/s"]
    yield f"| {' | '.join(columns)} |"
    yield "|---|" + "--:|" * (len(columns) - 1)
    for subject, row in measured.rows.items():
        label = f"**{subject.label}**" if subject.library == "engine" else subject.label
        if row.end is not None:
            yield f"| {label} | {row.end} |" + " |" * (len(columns) - 2)
            continue
        others = [measured.rows[reference] for reference in references.values()]
        cells = [label, spread(_rates(cell, row), 1)]
        cells += [spread(ratios(row, other)) for other in others]
        cells += [spread([1e3 * turn["wall_seconds"] for turn in row.turns], 1)]
        cells += [
            _milliseconds([turn["part_seconds"][part] for turn in row.turns]) for part in PARTS
        ]
        cells += [_milliseconds([host_seconds(turn) for turn in row.turns])]
        cells += [f"{median(turn['peak_gib'] for turn in row.turns):.3g}"]
        if gpu:
            peak = peak_flop_per_second(device_name, cell.precision)
            cells += [_milliseconds([turn["issue_seconds"] for turn in row.turns])]
            cells += [_share(_flop_rates(cell, row), [peak] * len(row.turns)) if peak else ""]
        else:
            cells += [_milliseconds([turn["cpu_seconds"] for turn in row.turns])]
            cells += [spread(ratios(row, other, "cpu_seconds")) for other in others]
        cells += [_share(_flop_rates(cell, row), measured.product_flop_per_second)]
        yield f"| {' | '.join(cells)} |"


def baseline(rows: Mapping[Subject, Row], compiled: bool) -> Subject | None:
    """Return what others are held against; None where nothing that could be was measured."""
    for library in BASELINES:
        subject = Subject(library, compiled)
        if subject in rows and rows[subject].end is None:
            return subject
    return None


def ratios(row: Row, other: Row, key: str = "wall_seconds") -> list[float]:
    """Return the other's time over a row's own, in each round."""
    return [theirs[key] / own[key] for own, theirs in zip(row.turns, other.turns, strict=True)]


def host_seconds(turn: Mapping[str, Any]) -> float:
    """Return what is left of a step's wall time beside its parts."""
    return turn["wall_seconds"] - sum(turn["part_seconds"].values())


def remarks(rows: Mapping[Subject, Row], reference: Mapping[str, int]) -> Iterator[str]:
    """Say whose network is not the one that ours is, and what else workers said.

    Args:
        rows: of a cell.
        reference: parameters and forward multiply-adds of our network.
    """
    for subject, row in rows.items():
        for fact, value in row.facts.items():
            if abs(value / reference[fact] - 1) > FACTS_TOLERANCE_FRACTION:
                name = fact.replace("_", " ")
                yield f"{subject.label}: {value:,} {name}, ours has {reference[fact]:,}."
        yield from (f"{subject.label}: {remark}." for remark in row.remarks)


def goals(found: Mapping[Cell, Measured], device_name: str | None) -> Iterator[str]:
    """The goals beside what was measured.

    Args:
        found: what came of each cell.
        device_name: of the GPU; None on a CPU, where they stay open.
    """
    yield "Goals on a GPU like the H200, for Swin-L at 224 pixels, 21,841 classes, bf16:"
    yield ""
    yield "| goal | measured |"
    yield "|---|---|"
    measured = next((found[cell] for cell in found if cell.is_of_goals), None)
    for goal, value in (
        (f"{EAGER_GOAL:g} times timm's images/s under eager autocast", _against(False)),
        (f"{COMPILED_GOAL:g} times timm's images/s under torch.compile", _against(True)),
    ):
        yield f"| {goal} | {_of_goal(measured, device_name, value)} |"
    goal = f"{UTILISATION_GOAL:.0%} of the dense bf16 peak"
    yield f"| {goal} | {_of_goal(measured, device_name, _utilisation(found, device_name))} |"


def _against(compiled: bool) -> Callable[[Row, Measured], str]:
    def value(ours: Row, measured: Measured) -> str:
        reference = measured.rows.get(Subject("timm", compiled))
        if reference is None:
            return "open: timm was not asked for"
        if reference.end is not None:
            return f"open: timm: {reference.end}"
        return spread(ratios(ours, reference))

    return value


def _utilisation(
    found: Mapping[Cell, Measured], device_name: str | None
) -> Callable[[Row, Measured], str]:
    def value(ours: Row, measured: Measured) -> str:
        cell = next(cell for cell in found if found[cell] is measured)
        peak = peak_flop_per_second(device_name or "", cell.precision)
        if peak is None:
            return "open: the peak of this device is not known"
        return _share(_flop_rates(cell, ours), [peak] * len(ours.turns))

    return value


def _of_goal(
    measured: Measured | None, device_name: str | None, value: Callable[[Row, Measured], str]
) -> str:
    """The fastest of ours, or why there is none."""
    if device_name is None:
        return "open: no GPU here"
    if measured is None:
        return "open: not among what was measured"
    ours = {
        subject: row
        for subject, row in measured.rows.items()
        if subject.library == "engine" and row.end is None
    }
    if not ours:
        return "open: ours did not finish"
    best = min(ours, key=lambda one: median(turn["wall_seconds"] for turn in ours[one].turns))
    return f"{value(ours[best], measured)} ({best.label})"


def _milliseconds(seconds: Sequence[float]) -> str:
    return f"{1e3 * median(seconds):.1f}"


def _rates(cell: Cell, row: Row) -> list[float]:
    return [cell.micro_batch / turn["wall_seconds"] for turn in row.turns]


def _flop_rates(cell: Cell, row: Row) -> list[float]:
    """FLOP/s that training needs, whatever is computed again or in vain; our count for all."""
    per_image = TRAINING_FLOP_PER_FORWARD_MAC * count_forward_macs(cell.shape)
    return [per_image * rate for rate in _rates(cell, row)]


def _share(rates: Sequence[float], wholes: Sequence[float]) -> str:
    shares = [100 * rate / whole for rate, whole in zip(rates, wholes, strict=True)]
    return f"{spread(shares, 1)} %"
