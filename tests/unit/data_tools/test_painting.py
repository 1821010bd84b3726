import numpy as np
import pytest

from data_tools.painting import KINDS, SIDES, paint


def test_the_classes_are_sorted_and_distinct():
    ids = [kind.wnid for kind in KINDS]
    assert ids == sorted(set(ids))
    assert len({kind.name for kind in KINDS}) == len(KINDS) == 12


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_pictures_follow_their_stream(kind):
    first, again, other = (paint(kind, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.dtype == np.uint8
    assert SIDES[0] * 2 // 3 <= min(first.shape[:2])
    assert max(first.shape[:2]) <= SIDES[1]
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)
    assert first.std() > 10
