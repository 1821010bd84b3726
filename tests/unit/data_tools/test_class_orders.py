import pytest

from data_tools.class_orders import class_order, imageless, positions
from pretrain.errors import DataError


def like_fall11() -> list[str]:
    """21,841 invented ids with the published ids where the published orders have them."""
    before = [f"n0100{i:04d}" for i in range(9_205)]
    between = [f"n0400{i:04d}" for i in range(15_027 - 9_206)]
    after = [f"n1000{i:04d}" for i in range(21_841 - 9_205 - len(between) - 2)]
    synsets = [*before, *between, *after, "n15102455", "n15102894"]
    assert len(set(synsets)) == 21_841
    return synsets


def test_sorted_takes_any_synsets():
    assert class_order("sorted", ["n3", "n1", "n3"]) == ("n1", "n3")


def test_fall11_is_sorted():
    synsets = like_fall11()
    assert class_order("fall11", reversed(synsets)) == tuple(sorted(synsets))
    assert not imageless("fall11")


def test_google_has_two_classes_without_images():
    order = class_order("google21843", like_fall11())
    assert len(order) == 21_843
    assert order[9_205] == "n03931044"
    assert order[15_027] == "n09859684"
    assert imageless("google21843") == {"n03931044", "n09859684"}
    assert list(order) == sorted(order)


def test_the_official_order_is_googles_with_the_last_two_moved():
    synsets = like_fall11()
    order, google = class_order("swin_official", synsets), class_order("google21843", synsets)
    assert len(order) == 21_841
    assert set(order) == set(synsets)
    assert order[9_205] == "n15102455"
    assert order[15_027] == "n15102894"
    assert sum(a != b for a, b in zip(order, google, strict=False)) == 2
    differing = sum(a != b for a, b in zip(order, sorted(synsets), strict=True))
    assert differing == 12_636  # the published count


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fall11", "21,841"), ("google21843", "21,841"), ("swin_official", "21,841"),
     ("in1k", "1,000")],
)  # fmt: skip
def test_an_order_needs_its_synsets(name, expected):
    with pytest.raises(DataError, match=f"{name}: expected {expected} synsets, the source has 3"):
        class_order(name, ["n1", "n2", "n3"])


def test_an_order_needs_the_right_synsets():
    other = [f"n{i:08d}" for i in range(21_841)]
    with pytest.raises(DataError, match="not those of the fall 2011 release"):
        class_order("swin_official", other)


def test_orders_are_mapped_by_id():
    assert positions(["n2", "n9", "n1"], ["n1", "n2"]) == [1, None, 0]
