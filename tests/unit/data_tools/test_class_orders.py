import importlib.util
from pathlib import Path

import pytest

from data_tools import class_orders
from data_tools.class_orders import class_order, imageless, positions
from pretrain.data.manifest import class_order_sha256
from pretrain.errors import DataError


@pytest.fixture
def invented(monkeypatch):
    """Lets `like_fall11` pass for the published list."""
    digest = class_order_sha256(sorted(like_fall11()))
    monkeypatch.setitem(class_orders._SHA256, 21_841, digest)


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


@pytest.mark.usefixtures("invented")
def test_fall11_is_sorted():
    synsets = like_fall11()
    assert class_order("fall11", reversed(synsets)) == tuple(sorted(synsets))
    assert not imageless("fall11")


@pytest.mark.usefixtures("invented")
def test_google_has_two_classes_without_images():
    order = class_order("google21843", like_fall11())
    assert len(order) == 21_843
    assert order[9_205] == "n03931044"
    assert order[15_027] == "n09859684"
    assert imageless("google21843") == {"n03931044", "n09859684"}
    assert list(order) == sorted(order)


@pytest.mark.usefixtures("invented")
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


@pytest.mark.parametrize("name", ["fall11", "google21843", "swin_official"])
def test_an_order_needs_the_right_synsets(name):
    """As many others will not do, not even where the published positions fit."""
    for other in ([f"n{i:08d}" for i in range(21_841)], like_fall11()):
        with pytest.raises(
            DataError, match="21,841 synsets are not those of the fall 2011 release"
        ):
            class_order(name, other)


def test_a_thousand_classes_need_not_be_ilsvrc():
    with pytest.raises(DataError, match="1,000 synsets are not those of ILSVRC2012"):
        class_order("in1k", [f"n{i:08d}" for i in range(1_000)])


def test_the_published_lists_give_the_published_orders():
    """Against the lists that timm ships, where it is installed."""
    found = importlib.util.find_spec("timm")
    if found is None or found.origin is None:
        pytest.skip("timm is not installed")

    def listed(name: str) -> list[str]:
        file = Path(str(found.origin)).parent / "data" / "_info" / f"{name}_synsets.txt"
        return file.read_text().split()

    fall11, google = listed("imagenet22k"), listed("imagenet21k_goog")
    in1k = listed("imagenet")
    assert class_order("fall11", fall11) == tuple(fall11)
    assert class_order("google21843", fall11) == tuple(google)
    assert class_order("in1k", reversed(in1k)) == tuple(in1k)
    swin = class_order("swin_official", fall11)
    rows = [positions(in1k, order) for order in (fall11, swin)]
    assert sum(a != b for a, b in zip(*rows, strict=True)) == 281  # the published trap
    assert rows[0].count(None) == 1
    assert rows[0][850] is None  # n04399382, teddy bear


def test_orders_are_mapped_by_id():
    assert positions(["n2", "n9", "n1"], ["n1", "n2"]) == [1, None, 0]
