"""How records and events look in the rank log: one compact, aligned line each."""

from collections.abc import Mapping

LABELS = {
    "train/loss": "loss {:.4f}",
    "train/accuracy_fraction": "accuracy {:>5.1%}",
    "train/learning_rate": "lr {:.2e}",
    "train/grad_norm": "grad {:.2f}",
    "perf/images_per_second": "{:>7,.1f} images/s",
    "perf/data_wait_fraction": "wait {:>4.1%}",
    "memory/peak_gib": "{:.1f} GiB",
    "eval/loss": "evaluation: loss {:.4f}",
    "eval/top1_fraction": "top-1 {:.2%}",
    "eval/top5_fraction": "top-5 {:.2%}",
    "eval/images": "of {:,.0f} images",
    "eval/ema_loss": "average: loss {:.4f}",
    "eval/ema_top1_fraction": "top-1 {:.2%}",
    "eval/ema_top5_fraction": "top-5 {:.2%}",
    "eval/probe_loss": "probe: loss {:.4f}",
    "eval/probe_top1_fraction": "top-1 {:.2%}",
    "eval/probe_top5_fraction": "top-5 {:.2%}",
    "eval/probe_images": "of {:,.0f} images",
    "eval/probe_ema_loss": "average: loss {:.4f}",
    "eval/probe_ema_top1_fraction": "top-1 {:.2%}",
    "eval/probe_ema_top5_fraction": "top-5 {:.2%}",
}
"""What of a record is shown, in this order."""

COUNTED = {"train/skipped_steps": "skipped steps", "data/bad_samples": "bad samples"}
"""Counts shown only where there is something to see."""


def record_line(
    step: int,
    values: Mapping[str, float],
    *,
    total_steps: int,
    epoch: float,
    eta_seconds: float | None,
) -> str:
    """One record as a line without its end.

    Example:
        >>> record_line(20, {"train/loss": 3.14159}, total_steps=100, epoch=0.2, eta_seconds=75)
        'epoch   0.20  step  20/100  loss 3.1416  eta 1:15'
    """
    parts = [f"epoch {epoch:6.2f}", f"step {step:>{len(str(total_steps))}}/{total_steps}"]
    parts += [text.format(values[name]) for name, text in LABELS.items() if name in values]
    parts += [f"{values[name]:.0f} {text}" for name, text in COUNTED.items() if values.get(name)]
    if eta_seconds is not None:
        parts.append(f"eta {duration(eta_seconds)}")
    return "  ".join(parts)


def event_line(kind: str, fields: Mapping[str, object]) -> str:
    """One event as a line without its end.

    Example:
        >>> event_line("resumed", {"step": 40})
        'resumed: step 40'
    """
    if kind == "alert":  # its text says the rest
        fields = {"": fields["text"]}
    text = ", ".join(f"{name} {value}".lstrip() for name, value in fields.items())
    line = f"{kind.replace('_', ' ')}: {text}" if text else kind.replace("_", " ")
    return "".join(letter if letter.isprintable() else " " for letter in line)


def duration(seconds: float) -> str:
    """Seconds as people read them.

    Example:
        >>> duration(75), duration(3 * 3600 + 62), duration(2 * 86400 + 3600)
        ('1:15', '3:01:02', '2d 1:00:00')
    """
    whole = max(round(seconds), 0)
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    clock = f"{hours}:{minutes:02d}:{rest:02d}" if hours or days else f"{minutes}:{rest:02d}"
    return f"{days}d {clock}" if days else clock
