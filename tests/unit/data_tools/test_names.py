import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.names import joined, shared


@given(st.lists(st.binary(max_size=6).map(lambda name: name.replace(b"\0", b"")), min_size=1))
def test_names_are_whole_again(names):
    assert shared(names).full() == names


@pytest.mark.parametrize(
    ("names", "head", "cores", "end"),
    [
        ([b"n1_7.JPEG", b"n1_12.JPEG"], b"n1_", [b"7", b"12"], b".JPEG"),
        ([b"n1_7.JPEG", b"n1_75.JPEG"], b"n1_7", [b"", b"5"], b".JPEG"),
        ([b"aa", b"a"], b"a", [b"a", b""], b""),
        ([b"one.jpg"], b"one.jpg", [b""], b""),
        ([b"same", b"same"], b"same", [b"", b""], b""),
        ([], b"", [], b""),
    ],
)
def test_what_all_share_is_kept_once(names, head, cores, end):
    found = shared(names)
    assert (found.head, found.cores.tolist(), found.end) == (head, cores, end)


def test_classes_are_joined_in_order():
    heads, cores, ends = joined([shared([b"a1x", b"a22x"]), shared([]), shared([b"b333"])])
    assert heads == (b"a", b"", b"b333")
    assert ends == (b"x", b"", b"")
    assert cores.tolist() == [b"1", b"22", b""]
    assert cores.dtype == np.dtype("S2")
