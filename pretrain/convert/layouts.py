"""Tensors from one layout to another, by the table of names; values untouched."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.convert.names import (
    INDEX_NAMES,
    LAYOUTS,
    Family,
    Layout,
    Rule,
    block_prefix,
    is_derived,
    rules,
)
from pretrain.errors import ModelError
from pretrain.models.mixers import log_coordinates, relative_position_index
from pretrain.models.variants import Shape, stage_maps, trained_windows
from pretrain.models.windows import shift_mask

# Rows of a column of 2x2 tokens first (official), or columns of a row first (`torch.nn.Unfold`).
_QUARTERS = [0, 2, 1, 3]
FAMILIES: tuple[Family, ...] = ("swin", "swinv2")


class Recognized(NamedTuple):
    """Tensors under official names, and what they were called before.

    Attributes:
        tensors: by official names, derived buffers left out.
        layout: whose names they had.
        family: which network they are of.
        unknown: names that the layout does not have.
    """

    tensors: dict[str, Tensor]
    layout: Layout
    family: Family
    unknown: tuple[str, ...]


def recognize(tensors: Mapping[str, Tensor]) -> Recognized:
    """Find the layout that knows the most names, and give the tensors their official ones.

    The official layout wins a tie, as when there is nothing of patch merging and the head.
    """
    candidates = [from_layout(tensors, layout, family) for family in FAMILIES for layout in LAYOUTS]
    return min(candidates, key=lambda candidate: len(candidate.unknown))


def from_layout(tensors: Mapping[str, Tensor], layout: Layout, family: Family) -> Recognized:
    """Give tensors of a layout their official names; values are copied only where they move."""
    found: dict[str, Tensor] = {}
    left = {name for name in tensors if not is_derived(name)}
    for rule in rules(layout, family):
        names = [name for name in rule.other if name is not None]
        if all(name in left for name in names):
            left.difference_update(names)
            parts = [None if name is None else tensors[name] for name in rule.other]
            found |= _named(rule.official, _refold(_regroup(parts, rule.official), rule, False))
    return Recognized(found, layout, family, tuple(name for name in tensors if name in left))


def to_layout(
    weights: Mapping[str, Tensor], layout: Layout, family: Family, shape: Shape
) -> dict[str, Tensor]:
    """Give tensors with official names those of a layout, with the buffers that it stores.

    Args:
        weights: by official names, without derived buffers.
        layout: the names to give.
        family: which network they are of.
        shape: of the network; what the buffers follow from.

    Raises:
        ModelError: the layout has no place for the family, or no name for a tensor.
    """
    if not rules(layout, family):
        raise ModelError(f"{layout}: has no names for {family}; choose another layout")
    found: dict[str, Tensor] = {}
    left = set(weights)
    for rule in rules(layout, family):
        names = [name for name in rule.official if name is not None]
        if all(name in left for name in names):
            left.difference_update(names)
            parts = [None if name is None else weights[name] for name in rule.official]
            found |= _named(rule.other, _regroup(_refold(parts, rule, True), rule.other))
    if left:
        raise ModelError(f"{layout}: has no name for {sorted(left)[0]} and {len(left) - 1} more")
    return {name: tensor.contiguous() for name, tensor in found.items()} | _buffers(
        layout, family, shape
    )


def _named(names: tuple[str | None, ...], parts: list[Tensor | None]) -> dict[str, Tensor]:
    pairs = zip(names, parts, strict=True)
    return {name: part for name, part in pairs if name is not None and part is not None}


def _regroup(parts: list[Tensor | None], names: tuple[str | None, ...]) -> list[Tensor | None]:
    """Cut one tensor into thirds, or join thirds to one, where the names ask for it."""
    if len(parts) == len(names):
        return parts
    if len(parts) == 1:
        whole = parts[0]
        assert whole is not None  # noqa: S101 - a rule's only name is never None
        thirds = whole.chunk(len(names))
        if len({third.shape for third in thirds}) != 1 or len(thirds) != len(names):
            raise ModelError(f"{names[0]}: expected {len(names)} equal parts of q, k and v")
        return list(thirds)
    present = next(part for part in parts if part is not None)
    return [torch.cat([torch.zeros_like(present) if part is None else part for part in parts])]


def _refold(parts: list[Tensor | None], rule: Rule, unfold: bool) -> list[Tensor | None]:
    """Reorder the channels of patch merging [..., 4C] between the two orders of its quarters.

    The official order is quarter-major; `torch.nn.Unfold`'s is channel-major, quarters by rows.
    """
    if not rule.unfolded:
        return parts
    reordered: list[Tensor | None] = []
    for part in parts:
        assert part is not None  # noqa: S101 - patch merging has no absent parts
        if part.shape[-1] % 4:
            raise ModelError(f"{rule.other[0]}: expected a multiple of 4 channels")
        if unfold:
            quarters = part.unflatten(-1, (4, -1))[..., _QUARTERS, :].transpose(-1, -2)
        else:
            quarters = part.unflatten(-1, (-1, 4)).transpose(-1, -2)[..., _QUARTERS, :]
        reordered.append(quarters.flatten(-2).contiguous())
    return reordered


def _buffers(layout: Layout, family: Family, shape: Shape) -> dict[str, Tensor]:
    """The derived buffers that files of this layout hold."""
    found: dict[str, Tensor] = {}
    if layout not in INDEX_NAMES or (family == "swinv2" and layout == "huggingface"):
        return found
    for stage, (side, window, shift) in enumerate(stage_maps(shape)):
        index = relative_position_index(window)
        flat = layout == "torchvision"
        for block in range(shape.depths[stage]):
            prefix = block_prefix(layout, family, stage, block)
            rows = index.reshape(-1) if flat else index.reshape(window**2, window**2)
            found[prefix + INDEX_NAMES[layout]] = rows.clone()
            if family == "swinv2":
                side_of_table = 2 * window - 1
                table = log_coordinates(window, trained_windows(shape)[stage])
                name = INDEX_NAMES[layout].replace("position_index", "coords_table")
                found[prefix + name] = table.view(1, side_of_table, side_of_table, 2)
            if layout == "official" and shift and block % 2:
                padded = side + -side % window
                mask = shift_mask(padded, padded, window, shift, torch.device("cpu"))
                found[f"{prefix}attn_mask"] = mask
    return found
