"""Orders of the ImageNet classes, by name: which label means which WordNet id.

No list is kept here. Each order is derived from the synsets that the images themselves name, whose
digest must be that of the published list, and from how it differs from them:

- ``sorted``: whatever synsets there are, sorted; what an image-folder reader gives.
- ``fall11``: the same for the 21,841 synsets of the fall 2011 release.
- ``google21843``: those and two synsets without images, sorted; BiT, ViT and AugReg weights.
- ``swin_official``: Google's order, the last two synsets moved into the two imageless places.
- ``in1k``: the 1,000 synsets of ILSVRC2012, sorted.
"""

from collections.abc import Iterable, Sequence

from pretrain.data.manifest import class_order_sha256
from pretrain.errors import DataError

CLASS_ORDERS = ("sorted", "fall11", "google21843", "swin_official", "in1k")
_SYNSETS = {"fall11": 21_841, "google21843": 21_841, "swin_official": 21_841, "in1k": 1_000}
_SHA256 = {
    21_841: "6320b72b72e43c09a768f0253d28c3b55707760bbf3b9d308887800b0d86658d",
    1_000: "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd",
}
"""Of the sorted synsets of fall 2011 and of ILSVRC2012, by their number."""
_IMAGELESS = {9_205: "n03931044", 15_027: "n09859684"}
"""Position in Google's order → synset without images."""
_MOVED = {9_205: "n15102455", 15_027: "n15102894"}
"""Position in the official Swin order → the synset that Google's order has at its end."""


def class_order(name: str, synsets: Iterable[str]) -> tuple[str, ...]:
    """The classes in the order of their labels.

    Args:
        name: one of `CLASS_ORDERS`.
        synsets: WordNet ids of the classes that have images.

    Raises:
        DataError: the synsets are not those the order is defined for.
    """
    found = sorted(set(synsets))
    expected = _SYNSETS.get(name)
    if expected is not None and len(found) != expected:
        raise DataError(
            f"--class-order {name}: expected {expected:,} synsets, the source has {len(found):,}; "
            "--class-order sorted takes any"
        )
    if expected is not None and class_order_sha256(found) != _SHA256[expected]:
        release = "ILSVRC2012" if name == "in1k" else "the fall 2011 release"
        raise DataError(
            f"--class-order {name}: the source's {len(found):,} synsets are not those of "
            f"{release}; --class-order sorted takes any"
        )
    if name in ("google21843", "swin_official"):
        return _google(name, found)
    return tuple(found)


def imageless(name: str) -> frozenset[str]:
    """Synsets of an order that have no images."""
    return frozenset(_IMAGELESS.values()) if name == "google21843" else frozenset()


def positions(of: Sequence[str], among: Sequence[str]) -> list[int | None]:
    """Where each class of one order stands in another; None where it does not."""
    place = {wnid: position for position, wnid in enumerate(among)}
    return [place.get(wnid) for wnid in of]


def _google(name: str, fall11: list[str]) -> tuple[str, ...]:
    order = sorted({*fall11, *_IMAGELESS.values()})
    if name == "swin_official":
        order = order[: len(fall11)]
        for place, wnid in _MOVED.items():
            order[place] = wnid
    return tuple(order)
