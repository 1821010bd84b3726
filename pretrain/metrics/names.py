"""Every number a run may record: its unit, how it is reduced, what it means. No torch."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One recorded number.

    Attributes:
        unit: what one is; ``""`` for pure numbers. Fractions run from 0 to 1.
        reduction: how the values of steps, images and ranks become one number.
        meaning: one line for readers of the report.
    """

    unit: str
    reduction: str
    meaning: str


_INTERVAL = "since the previous record"

METRICS: dict[str, Metric] = {
    "train/loss": Metric(
        "",
        f"mean over all ranks' images of the steps applied {_INTERVAL}",
        "Cross-entropy against the mixed and smoothed targets. Masked pre-training: absolute error "
        "of the hidden pixels, normalised.",
    ),
    "train/grad_norm": Metric(
        "",
        f"mean over the steps applied {_INTERVAL}",
        "Norm of the whole gradient, before clipping.",
    ),
    "train/learning_rate": Metric("", "last step", "Learning rate applied to the last step."),
    "train/skipped_steps": Metric(
        "steps", f"sum {_INTERVAL}", "Steps not applied because a gradient was not finite."
    ),
    "train/epoch": Metric("epochs", "last step", "Passes over the training split so far."),
    "data/samples_consumed": Metric(
        "images", "last step", "Training images seen so far, repeats included."
    ),
    "data/bad_samples": Metric(
        "images",
        f"sum over all ranks {_INTERVAL}",
        "Images that could not be read and were replaced by the next in order.",
    ),
    "perf/images_per_second": Metric(
        "images/s",
        f"all ranks' images over rank zero's time {_INTERVAL}, evaluation and saving excluded",
        "Training throughput.",
    ),
    "perf/step_seconds": Metric(
        "s",
        f"mean over the steps {_INTERVAL}, evaluation and saving excluded",
        "Time of one optimizer step, waiting for data included.",
    ),
    "perf/data_wait_fraction": Metric(
        "",
        f"rank zero's waiting time over its training time {_INTERVAL}",
        "Share of the training time spent waiting for the loader.",
    ),
    "perf/evaluation_seconds": Metric(
        "s", f"rank zero's sum {_INTERVAL}", "Time spent in evaluation."
    ),
    "perf/save_seconds": Metric(
        "s", f"rank zero's sum {_INTERVAL}", "Time training waited for a checkpoint."
    ),
    "perf/save_wait_seconds": Metric(
        "s",
        f"rank zero's sum {_INTERVAL}",
        "The part of perf/save_seconds spent waiting for the save before to end.",
    ),
    "perf/save_write_seconds": Metric(
        "s",
        f"rank zero's sum over the saves that ended {_INTERVAL}",
        "Time from the copy of the state to the committed checkpoint, beside training or not.",
    ),
    "memory/peak_gib": Metric(
        "GiB",
        "maximum over ranks since their start",
        "Peak memory: the device allocator's on CUDA, the process's resident set on CPU.",
    ),
    "eval/loss": Metric(
        "nats", "mean over the split's images", "Cross-entropy against the plain labels."
    ),
    "eval/top1_fraction": Metric(
        "", "mean over the split's images", "Images whose label has the highest logit."
    ),
    "eval/top5_fraction": Metric(
        "", "mean over the split's images", "Images whose label is among the five highest logits."
    ),
    "eval/images": Metric("images", "sum over all ranks", "Images evaluated."),
    "eval/probe_loss": Metric(
        "nats",
        "mean over the probe's images",
        "Cross-entropy of the probe's classes alone against its plain labels.",
    ),
    "eval/probe_top1_fraction": Metric(
        "",
        "mean over the probe's images",
        "Images of the probe whose label has the highest logit of the probe's classes.",
    ),
    "eval/probe_top5_fraction": Metric(
        "",
        "mean over the probe's images",
        "Images of the probe whose label is among the five highest logits of its classes.",
    ),
    "eval/probe_images": Metric("images", "sum over all ranks", "Images of the probe evaluated."),
}
"""What `pretrain.metrics.recorder.Recorder.write` accepts, in the order of reading."""


def check_declared(names: Iterable[str]) -> None:
    """Refuse names that nobody declared.

    Raises:
        ValueError: a name is not in `METRICS`; a defect of the caller, not of any input.
    """
    unknown = sorted(set(names) - METRICS.keys())
    if unknown:
        raise ValueError(f"metric {', '.join(unknown)}: not declared in pretrain/metrics/names.py")
