"""What the dashboards show: sections of panels of metrics, as plain values. No wandb.

`pretrain.metrics.mirror.views` makes of it a workspace and a report of Weights & Biases.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from pretrain.metrics.names import of_stages

Axis = Literal["global_step", "samples"]
"""What every logged row holds besides its metrics: steps done, and training images seen."""
AXES: tuple[Axis, ...] = get_args(Axis)
STEPS: Axis = "global_step"
AUGMENTATION = "augmentation"
"""Key under which the picture of what the model sees is logged; no metric."""


@dataclass(frozen=True)
class Panel:
    """One chart.

    Attributes:
        title: what it is called.
        keys: what it draws: names of metrics; of an ``images`` panel, keys of pictures.
        kind: one line per key, or areas on top of each other, or pictures.
        logarithmic: whether the vertical axis is.
        over: horizontal axis; ``evaluation`` leaves it to whoever builds the dashboard.
    """

    title: str
    keys: tuple[str, ...]
    kind: Literal["lines", "stacked", "images"] = "lines"
    logarithmic: bool = False
    over: Literal["steps", "evaluation"] = "steps"


@dataclass(frozen=True)
class Section:
    """Panels that answer one question.

    Attributes:
        name: what it is called.
        question: what somebody who opens it wants to know, one line.
        panels: in the order of looking.
    """

    name: str
    question: str
    panels: tuple[Panel, ...]


def _evaluated(title: str, *names: str) -> Panel:
    return Panel(title, tuple(f"eval/{name}" for name in names), over="evaluation")


SECTIONS: tuple[Section, ...] = (
    Section(
        "Optimisation",
        "Does it learn, and is it stable?",
        (
            Panel("Training loss", ("train/loss",)),
            Panel("Gradient norm", ("train/grad_norm",), logarithmic=True),
            Panel("Learning rate", ("train/learning_rate",)),
            Panel(
                "Update over weight, by stage", of_stages("train/update_ratio"), logarithmic=True
            ),
            Panel("Activations, root mean square", of_stages("train/activation_rms")),
            Panel("Activations, largest", of_stages("train/activation_max"), logarithmic=True),
            Panel("Skipped steps", ("train/skipped_steps",)),
            Panel("Weight decay", ("train/weight_decay",)),
            Panel("Loss scale (fp16)", ("train/loss_scale",), logarithmic=True),
        ),
    ),
    Section(
        "Accuracy",
        "How good are the weights, as trained and averaged?",
        (
            _evaluated("Top-1", "top1_fraction", "ema_top1_fraction"),
            _evaluated("Top-5", "top5_fraction", "ema_top5_fraction"),
            _evaluated("Evaluation loss", "loss", "ema_loss"),
            _evaluated("Probe, top-1", "probe_top1_fraction", "probe_ema_top1_fraction"),
            _evaluated("Probe, top-5", "probe_top5_fraction", "probe_ema_top5_fraction"),
            _evaluated("Probe, loss", "probe_loss", "probe_ema_loss"),
            Panel("On mixed training targets", ("train/accuracy_fraction",)),
        ),
    ),
    Section(
        "Throughput",
        "How fast is it, and where does the time go?",
        (
            Panel("Images per second", ("perf/images_per_second",)),
            Panel("Images per second and device", ("perf/images_per_second_per_device",)),
            Panel("FLOP utilisation", ("perf/flop_utilisation_fraction",)),
            Panel(
                "Where the time goes",
                (
                    "perf/compute_seconds",
                    "perf/communication_seconds",
                    "perf/data_wait_seconds",
                    "perf/evaluation_seconds",
                    "perf/save_seconds",
                ),
                kind="stacked",
            ),
            Panel("Step time", ("perf/step_seconds",)),
            Panel("Saving, beside training", ("perf/save_wait_seconds", "perf/save_write_seconds")),
        ),
    ),
    Section(
        "Data health",
        "Does the data come in time, whole, and as meant?",
        (
            Panel("Share of the time spent waiting for data", ("perf/data_wait_fraction",)),
            Panel("Bad samples", ("data/bad_samples",)),
            Panel("Images seen", ("data/samples_consumed",)),
            Panel("Epochs", ("train/epoch",)),
            Panel("What the model sees", (AUGMENTATION,), kind="images"),
        ),
    ),
    Section(
        "Memory",
        "How near is it to the limit?",
        (Panel("Peak memory", ("memory/peak_gib",)),),
    ),
    Section(
        "Attempts",
        "How often did it start again?",
        (Panel("Attempt", ("run/attempt",)),),
    ),
)

_COUNTED = "the same in every evaluation of a run; its value is in the run's summary"
NOT_SHOWN: dict[str, str] = {
    "eval/images": _COUNTED,
    "eval/ema_images": _COUNTED,
    "eval/probe_images": _COUNTED,
    "eval/probe_ema_images": _COUNTED,
}
"""Declared metrics without a panel, and why."""


def shown_metrics() -> list[str]:
    """Every metric that some panel draws, in the order of the panels."""
    return [
        key
        for section in SECTIONS
        for panel in section.panels
        if panel.kind != "images"
        for key in panel.keys
    ]
