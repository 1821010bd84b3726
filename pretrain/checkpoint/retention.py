"""Which checkpoints are kept: a pure rule. No torch, no I/O."""

from collections.abc import Mapping


def steps_kept(
    sound: Mapping[int, float | None],
    *,
    keep_last: int,
    keep_best: int,
    keep_every_steps: int | None,
) -> set[int]:
    """Return the steps whose checkpoints are kept; the newest is always one of them.

    Args:
        sound: accuracy by step of every sound checkpoint, None where none was measured.
        keep_last: newest ones kept, at least 1.
        keep_best: ones with the highest accuracy kept; the later of two equals.
        keep_every_steps: ones at multiples of this step kept for ever; None keeps none for it.
    """
    newest = sorted(sound)[-keep_last:]
    measured = [(accuracy, step) for step, accuracy in sound.items() if accuracy is not None]
    best = [step for _, step in sorted(measured)[len(measured) - min(keep_best, len(measured)) :]]
    periodic = [step for step in sound if keep_every_steps and step % keep_every_steps == 0]
    return {*newest, *best, *periodic}
