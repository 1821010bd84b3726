"""Batches left out: what a step trains on, however the list has grown."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.skips import Skip, batch_of_step, with_skip

spans = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=8)


def grown(spans):
    skips = []
    for first, count in spans:
        skips = with_skip(skips, first, first + count)
    return skips


@given(spans)
def test_steps_train_on_every_batch_that_is_not_left_out_once_and_in_order(spans):
    skips = grown(spans)
    left_out = {batch for skip in skips for batch in range(skip.first_batch, _end(skip))}
    wanted = [batch for batch in range(400) if batch not in left_out][:60]
    assert [batch_of_step(step, skips) for step in range(60)] == wanted


@given(spans, st.integers(0, 60), st.integers(1, 20))
def test_what_was_trained_before_a_rewind_stays_and_what_went_wrong_never_comes_again(
    spans, first, count
):
    before = grown(spans)
    after = with_skip(before, first, first + count)
    for step in range(first):
        assert batch_of_step(step, after) == batch_of_step(step, before)
    wrong = {batch_of_step(step, before) for step in range(first, first + count)}
    assert not wrong & {batch_of_step(step, after) for step in range(200)}
    assert batch_of_step(first, after) > max(wrong), "nothing before the fault comes after it"


@given(spans)
def test_skips_stay_apart(spans):
    skips = grown(spans)
    assert all(_end(one) < two.first_batch for one, two in pairwise(skips))


def _end(skip: Skip) -> int:
    return skip.first_batch + skip.batches
