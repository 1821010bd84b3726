"""Which charts the report of a run has."""

from collections.abc import Iterable

import numpy as np

from pretrain.metrics.names import STAGES, of_stages
from pretrain.metrics.report.curves import Chart, Line, Marks, stacked_shares
from pretrain.metrics.report.facts import Facts, Series

PARTS = {
    "perf/compute_seconds": "compute",
    "perf/communication_seconds": "communication",
    "perf/data_wait_seconds": "waiting for data",
    "perf/evaluation_seconds": "evaluation",
    "perf/save_seconds": "saving",
}
"""What the time of a run is made of, as it is called."""
ACCURACIES = {
    "eval/": "",
    "eval/ema_": "average ",
    "eval/probe_": "probe ",
    "eval/probe_ema_": "probe, average ",
}
"""How the metrics of each evaluation begin, and how its lines are called."""

Groups = dict[str, list[Chart]]


def charts(facts: Facts) -> Groups:
    """The charts by heading, without those that have nothing to show."""
    groups: Groups = {
        "Loss and accuracy": _learning(facts),
        "Optimisation": _optimisation(facts),
        "Speed, memory and data": _running(facts),
    }
    shown = {title: [chart for chart in group if chart.lines] for title, group in groups.items()}
    return {title: group for title, group in shown.items() if group}


def marks(facts: Facts) -> Marks:
    """What is marked on the charts over steps."""
    starts = [(life.number, float(life.steps[0])) for life in facts.lives if life.steps]
    evaluated: set[float] = set()
    for prefix in ACCURACIES:
        found = facts.series.get(f"{prefix}images")
        evaluated |= set(found.steps.tolist()) if found else set()
    last = float(facts.records[-1]["step"]) if facts.records else 1.0
    return Marks(last, starts[1:], sorted(evaluated))


def _learning(facts: Facts) -> list[Chart]:
    losses = [("training", "train/loss")]
    losses += [(f"{label}evaluation", f"{prefix}loss") for prefix, label in _of_own_split()]
    probe = [(f"{label}evaluation", f"{prefix}loss") for prefix, label in _of_probe()]
    training = ("training, mixed", "train/accuracy_fraction")
    return [
        Chart("Loss", _lines(facts, losses)),
        Chart("Accuracy", _lines(facts, [*_accuracies(_of_own_split()), training]), percent=True),
        Chart("Accuracy of the probe", _lines(facts, _accuracies(_of_probe())), percent=True),
        Chart("Loss of the probe", _lines(facts, probe)),
    ]


def _optimisation(facts: Facts) -> list[Chart]:
    return [
        Chart("Learning rate", _line(facts, "train/learning_rate"), from_zero=True),
        Chart("Weight decay", _line(facts, "train/weight_decay"), from_zero=True),
        Chart("Gradient norm before clipping", _line(facts, "train/grad_norm"), log_if_wide=True),
        Chart(
            "Update over weight, by stage", _stages(facts, "train/update_ratio"), log_if_wide=True
        ),
        Chart("Activation, RMS by stage", _stages(facts, "train/activation_rms"), log_if_wide=True),
        Chart(
            "Activation, largest by stage", _stages(facts, "train/activation_max"), log_if_wide=True
        ),
        Chart("Loss scale", _line(facts, "train/loss_scale"), log_if_wide=True),
        Chart("Skipped steps in all", _total(facts, "train/skipped_steps"), from_zero=True),
    ]


def _running(facts: Facts) -> list[Chart]:
    per_device = _line(facts, "perf/images_per_second_per_device")
    if facts.plan.get("nodes") == 1 and facts.plan.get("ranks_per_node") == 1:
        per_device = ()  # the same line again
    return [
        Chart("Where the time goes", _split(facts), percent=True, stacked=True),
        Chart("Images per second", _line(facts, "perf/images_per_second"), from_zero=True),
        Chart("Images per second of one device", per_device, from_zero=True),
        Chart(
            "FLOP utilisation",
            _line(facts, "perf/flop_utilisation_fraction"),
            percent=True,
            from_zero=True,
        ),
        Chart("Seconds per step", _line(facts, "perf/step_seconds"), from_zero=True),
        Chart(
            "Time spent waiting for data",
            _line(facts, "perf/data_wait_fraction"),
            percent=True,
            from_zero=True,
        ),
        Chart("Peak memory, GiB", _line(facts, "memory/peak_gib"), from_zero=True),
        Chart("Images seen", _seen(facts), from_zero=True, axis="hours"),
        Chart("Bad samples in all", _total(facts, "data/bad_samples"), from_zero=True),
    ]


def time_split(facts: Facts) -> dict[str, np.ndarray]:
    """Seconds of each part in every record that says how long it computed; empty without any."""
    compute = facts.series.get("perf/compute_seconds")
    if compute is None:
        return {}
    row = {int(step): number for number, step in enumerate(compute.steps)}
    split = {}
    for name in PARTS:
        seconds = np.zeros(len(compute))
        found = facts.series.get(name)
        for step, value in _points(found):
            if step in row:
                seconds[row[step]] += max(value, 0.0)
        if found is not None:
            split[name] = seconds
    return split


def _split(facts: Facts) -> tuple[Line, ...]:
    parts = [(PARTS[name], seconds) for name, seconds in time_split(facts).items()]
    return stacked_shares(facts.series["perf/compute_seconds"].steps, parts) if parts else ()


def _of_own_split() -> Iterable[tuple[str, str]]:
    return [pair for pair in ACCURACIES.items() if "probe" not in pair[0]]


def _of_probe() -> Iterable[tuple[str, str]]:
    return [(prefix, _of_average(prefix)) for prefix in ACCURACIES if "probe" in prefix]


def _of_average(prefix: str) -> str:
    return "average " if prefix.endswith("ema_") else ""


def _accuracies(prefixes: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [
        (f"{label}top-{k}", f"{prefix}top{k}_fraction")
        for prefix, label in prefixes
        for k in (1, 5)
    ]


def _lines(facts: Facts, wanted: Iterable[tuple[str, str]]) -> tuple[Line, ...]:
    found = ((label, name, facts.series.get(name)) for label, name in wanted)
    return tuple(
        Line(label, series.steps, series.values, dots=name.startswith("eval/"))
        for label, name, series in found
        if series is not None
    )


def _line(facts: Facts, name: str) -> tuple[Line, ...]:
    return _lines(facts, [("", name)])


def _stages(facts: Facts, prefix: str) -> tuple[Line, ...]:
    names = zip(STAGES, of_stages(prefix), strict=True)
    return _lines(facts, [(f"stage {stage}", name) for stage, name in names])


def _total(facts: Facts, name: str) -> tuple[Line, ...]:
    """A count, summed up; nothing where there was never anything to count."""
    found = facts.series.get(name)
    if found is None or not found.values.any():
        return ()
    return (Line("", found.steps, found.values.cumsum()),)


def _seen(facts: Facts) -> tuple[Line, ...]:
    found = facts.series.get("data/samples_consumed")
    if found is None:
        return ()
    hours = np.interp(found.steps, facts.hours.steps, facts.hours.values)
    return (Line("", hours, found.values),)


def _points(series: Series | None) -> list[tuple[int, float]]:
    if series is None:
        return []
    return list(zip(series.steps.tolist(), series.values.tolist(), strict=True))
