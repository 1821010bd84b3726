"""In which order candidates are tried: a few of them, not every combination. No torch."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from pretrain.tune.candidates import Candidate, Space
from pretrain.tune.trials import Failure, Measured, OutOfTimeError, Trials, is_faster

OF_SIZE = ("memory", "not tried", "time")
"""Failures that a smaller micro-batch or more recomputing may cure."""


def search(space: Space, trials: Trials) -> bool:
    """Try candidates until neither another size nor another setting promises more.

    First what the config says; then each setting by itself at that size, of which the good ones
    stay; then other micro-batches, with less recomputing where memory allows it and more where
    memory alone stopped the growth; at last the best and the config's own once more.

    Returns:
        Whether it came to its end, rather than to the end of its time.
    """
    try:
        chosen = next(_that_work(trials, _starts(space, trials)), None)
        if chosen is not None:
            chosen = _settle_choices(space, trials, chosen)
            chosen = _settle_size(space, trials, chosen)
            chosen = _recompute_less(space, trials, chosen)
            _recompute_more(space, trials, chosen)
            _confirm(space, trials)
    except OutOfTimeError:
        return False
    return True


def _that_work(trials: Trials, candidates: Iterable[Candidate]) -> Iterator[Candidate]:
    return (candidate for candidate in candidates if trials.rate(candidate))


def _starts(space: Space, trials: Trials) -> Iterator[Candidate]:
    """The config's own, then what is likely to run where it does not."""
    own = space.own
    yield own
    row = trials.row_of(own)
    if row is not None and isinstance(row.outcome, Failure) and row.outcome.kind not in OF_SIZE:
        for field, values in space.choices.items():
            yield from (own.choosing(field, value) for value in values)
        return
    for size in reversed([size for size in space.sizes if size <= own.micro_batch]):
        for kind in space.checkpointing:
            yield replace(own, micro_batch=size, checkpointing=kind)


def _better(trials: Trials, chosen: Candidate, other: Candidate) -> bool:
    """Try another candidate; tell whether it works and is faster than the chosen one."""
    if not trials.rate(other):
        return False
    one, before = trials.row_of(other), trials.row_of(chosen)
    return one is not None and before is not None and is_faster(one, before)


def _settle_choices(space: Space, trials: Trials, chosen: Candidate) -> Candidate:
    for field, values in space.choices.items():
        for value in values:
            other = chosen.choosing(field, value)
            if _better(trials, chosen, other):
                chosen = other
    return chosen


def _settle_size(space: Space, trials: Trials, chosen: Candidate) -> Candidate:
    """Grow while that is faster; shrink only where the first growth was not."""
    start = chosen.micro_batch
    larger = [size for size in space.sizes if size > start]
    smaller = [size for size in reversed(space.sizes) if size < start]
    for sizes in (larger, smaller):
        for size in sizes:
            other = replace(chosen, micro_batch=size)
            if not _better(trials, chosen, other):
                break
            chosen = other
        if chosen.micro_batch != start:
            break
    return chosen


def _recompute_less(space: Space, trials: Trials, chosen: Candidate) -> Candidate:
    """Take the kind that keeps most at the largest micro-batch at which it runs."""
    lighter = space.checkpointing[: space.checkpointing.index(chosen.checkpointing)]
    sizes = [size for size in reversed(space.sizes) if size <= chosen.micro_batch]
    for kind in lighter:
        others = (replace(chosen, micro_batch=size, checkpointing=kind) for size in sizes)
        other = next(_that_work(trials, others), None)
        if other is not None and _better(trials, chosen, other):
            return other
    return chosen


def _recompute_more(space: Space, trials: Trials, chosen: Candidate) -> Candidate:
    """Go beyond the micro-batch that memory stopped, for as long as that pays for recomputing."""
    larger = [size for size in space.sizes if size > chosen.micro_batch]
    if not larger or not _stopped_by_memory(trials, replace(chosen, micro_batch=larger[0])):
        return chosen
    for kind in space.checkpointing[space.checkpointing.index(chosen.checkpointing) + 1 :]:
        other = replace(chosen, micro_batch=larger[0], checkpointing=kind)
        if not trials.rate(other):
            continue
        if not _better(trials, chosen, other):
            return chosen  # what recomputes more is slower still
        return _settle_size(space, trials, other)
    return chosen


def _stopped_by_memory(trials: Trials, candidate: Candidate) -> bool:
    row = trials.row_of(candidate)
    if row is None:
        return False
    if isinstance(row.outcome, Measured):
        return not trials.fits(row)
    return row.outcome.kind in ("memory", "not tried")


def _confirm(space: Space, trials: Trials) -> None:
    """Measure the best and the config's own again: machines warm up, and neighbours come and go."""
    best, own = trials.best(space.own), trials.row_of(space.own)
    if best is None or own is None or best.candidate == space.own:
        return
    if isinstance(own.outcome, Measured):
        trials.again(space.own)
    trials.again(best.candidate)
