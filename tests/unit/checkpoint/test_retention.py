from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.checkpoint.retention import steps_kept

SOUND = {10: 0.5, 20: 0.9, 30: None, 40: 0.9, 50: 0.1, 60: None}


def kept(last: int, best: int = 0, every: int | None = None) -> list[int]:
    return sorted(steps_kept(SOUND, keep_last=last, keep_best=best, keep_every_steps=every))


def test_each_rule():
    assert kept(2) == [50, 60]
    assert kept(1, best=1) == [40, 60]  # the later of two equals
    assert kept(1, best=2) == [20, 40, 60]
    assert kept(1, best=9) == [10, 20, 40, 50, 60]  # unmeasured ones are none of the best
    assert kept(1, every=20) == [20, 40, 60]
    assert kept(9) == list(SOUND)


def test_nothing_is_kept_of_nothing():
    assert steps_kept({}, keep_last=3, keep_best=2, keep_every_steps=5) == set()


@settings(deadline=None)
@given(
    st.dictionaries(st.integers(1, 500), st.none() | st.floats(0, 1), min_size=1),
    st.integers(1, 5),
    st.integers(0, 5),
    st.none() | st.integers(1, 50),
)
def test_the_newest_is_always_kept_and_nothing_is_invented(sound, last, best, every):
    chosen = steps_kept(sound, keep_last=last, keep_best=best, keep_every_steps=every)
    assert max(sound) in chosen
    assert chosen <= sound.keys()
    assert len(chosen) >= min(last, len(sound))
