"""Every number a run may record: its unit, how it is reduced, what it means. No torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Of = Literal["eval", "probe"]
"""The images of an evaluation: the run's own held-out split, or its probe."""
Weights = Literal["raw", "ema"]
"""The weights as they are trained, or their average."""


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
_SAMPLED = "last step before the record"
STAGES = (1, 2, 3, 4)
"""Swin's stages, as metrics number them."""


def of_stages(prefix: str) -> tuple[str, ...]:
    """The names of a number that every stage has.

    Example:
        >>> of_stages("train/update_ratio")[0]
        'train/update_ratio_stage_1'
    """
    return tuple(f"{prefix}_stage_{stage}" for stage in STAGES)


def _per_stage(prefix: str, reduction: str, meaning: str) -> dict[str, Metric]:
    names = zip(STAGES, of_stages(prefix), strict=True)
    return {name: Metric("", reduction, meaning.format(stage=stage)) for stage, name in names}


def evaluation_prefix(of: Of, weights: Weights) -> str:
    """How the metrics of some weights on some images begin.

    Example:
        >>> evaluation_prefix("eval", "raw"), evaluation_prefix("probe", "ema")
        ('eval/', 'eval/probe_ema_')
    """
    return f"eval/{'probe_' if of == 'probe' else ''}{'ema_' if weights == 'ema' else ''}"


def accuracy_names(given: Weights) -> tuple[str, str]:
    """The run's accuracy: top-1 on its own split, and on its probe.

    Args:
        given: weights that the run gives, `EmaConfig.given` of its config.
    """
    own, probe = (evaluation_prefix(of, given) for of in ("eval", "probe"))
    return f"{own}top1_fraction", f"{probe}top1_fraction"


def _accuracy(prefix: str, of: str, weights: str) -> dict[str, Metric]:
    """Loss and accuracy of some weights on the images of a split, or of the probe's classes."""
    mean = f"mean over the {of}'s images"
    logits = f"logits of {weights}" if of == "split" else f"logits that {weights} give its classes"
    return {
        f"{prefix}loss": Metric(
            "nats", mean, f"Cross-entropy of the {logits} against the plain labels."
        ),
        f"{prefix}top1_fraction": Metric(
            "", mean, f"Images whose label has the highest of the {logits}."
        ),
        f"{prefix}top5_fraction": Metric(
            "", mean, f"Images whose label has one of the five highest of the {logits}."
        ),
        f"{prefix}images": Metric("images", "sum over all ranks", "Images evaluated."),
    }


METRICS: dict[str, Metric] = {
    "train/loss": Metric(
        "",
        f"mean over all ranks' images of the steps applied {_INTERVAL}",
        "Cross-entropy against the mixed and smoothed targets. Masked pre-training: absolute error "
        "of the hidden pixels, normalised.",
    ),
    "train/accuracy_fraction": Metric(
        "",
        f"mean over all ranks' images of the steps applied {_INTERVAL}",
        "Training images whose highest logit is the class that weighs most in their mixed target; "
        "of equal ones the lowest class counts. Not of masked pre-training.",
    ),
    "train/grad_norm": Metric(
        "",
        f"mean over the steps applied {_INTERVAL}",
        "Norm of the whole gradient, before clipping.",
    ),
    "train/learning_rate": Metric("", "last step", "Learning rate applied to the last step."),
    "train/weight_decay": Metric("", "last step", "Weight decay of the parameters that decay."),
    "train/loss_scale": Metric("", "last step", "Factor on the loss; of fp16 only."),
    **_per_stage(
        "train/update_ratio",
        f"all ranks, {_SAMPLED}",
        "Norm of the change that a step made to the weights of stage {stage}, over their norm; "
        "from a sample of each large parameter. The head counts to none.",
    ),
    **_per_stage(
        "train/activation_rms",
        f"root mean square over all ranks, {_SAMPLED}",
        "Residual stream as stage {stage} leaves it, in the step's first micro-batch.",
    ),
    **_per_stage(
        "train/activation_max",
        f"maximum over all ranks, {_SAMPLED}",
        "Largest absolute value of the residual stream as stage {stage} leaves it.",
    ),
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
    "perf/images_per_second_per_device": Metric(
        "images/s", "the same over the number of ranks", "Training throughput of one device."
    ),
    "perf/flop_utilisation_fraction": Metric(
        "",
        f"mean over ranks {_INTERVAL}, evaluation and saving excluded",
        "Multiply-adds of forward and backward passes, twice each, over what the device could do "
        "in dense products of the training precision; of known devices only.",
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
    "perf/data_wait_seconds": Metric(
        "s", f"rank zero's sum {_INTERVAL}", "Time spent waiting for the loader."
    ),
    "perf/communication_seconds": Metric(
        "s",
        f"rank zero's time in one sampled step, times the steps {_INTERVAL}",
        "Time in which the step waited for collectives of gradients and parameters, which includes "
        "waiting for slower ranks. Not of ZeRO 3 on GPUs, which communicates beside computing.",
    ),
    "perf/compute_seconds": Metric(
        "s",
        f"rank zero's remainder {_INTERVAL}",
        "Training time that was neither waiting for data nor for collectives.",
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
    **_accuracy("eval/", "split", "the weights as trained"),
    **_accuracy("eval/ema_", "split", "the averaged weights"),
    **_accuracy("eval/probe_", "probe", "the weights as trained"),
    **_accuracy("eval/probe_ema_", "probe", "the averaged weights"),
    "run/attempt": Metric(
        "attempts", "last step", "Lives of the run so far, this one included; from 1."
    ),
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
