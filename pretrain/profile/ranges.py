"""Ranges round the parts of a network, put there for as long as steps are profiled."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from torch import nn
from torch.profiler import record_function

from pretrain.models.masked import MaskedSwin
from pretrain.models.swin import Block, Swin


@contextmanager
def ranges(model: Swin | MaskedSwin) -> Iterator[None]:
    """Put every call of the network's parts in a range inside the ``with`` block.

    Names are ``stage 1 / block 0 / attention``: whole, since what is computed again in the backward
    pass has no stage around it. A compiled block is one range: what is in it is not called. Nothing
    that is computed changes. A call that ends by an error, as torch ends one that computes again,
    ends its ranges.
    """
    put = [_put(owner, call, name) for owner, call, name in _calls(model)]
    try:
        yield
    finally:
        for take_away in put:
            take_away()


def _calls(model: Swin | MaskedSwin) -> Iterator[tuple[nn.Module, str, str]]:
    """Each part with the attribute that is called, and its name."""
    swin = model.encoder if isinstance(model, MaskedSwin) else model
    yield swin.patch_embed, "forward", "patch embedding"
    for number, stage in enumerate(swin.layers, 1):
        yield stage, "forward", f"stage {number}"
        for index, block in enumerate(stage.blocks):  # pyright: ignore[reportArgumentType]
            yield from _of_block(block, f"stage {number} / block {index}")
        if isinstance(stage.downsample, nn.Module):
            yield stage.downsample, "forward", f"patch merging {number}"
    yield swin.norm, "forward", "head / norm"
    yield swin.head, "forward", "head"
    if isinstance(model, MaskedSwin):
        yield model.decoder, "forward", "decoder"


def _of_block(block: Block, name: str) -> Iterator[tuple[nn.Module, str, str]]:
    if block._compiled_call_impl is not None:
        yield block, "_compiled_call_impl", name
        return
    yield block, "forward", name
    mixer = block.spatial_mlp if block.attn is None else block.attn
    yield mixer, "forward", f"{name} / attention"
    if block.attn is not None:
        yield block.attn, "position_bias", f"{name} / position bias"
    yield block.mlp, "forward", f"{name} / mlp"
    for norm in (block.norm1, block.norm2, block.norm3):
        if norm is not None:
            yield norm, "forward", f"{name} / norm"


def _put(owner: nn.Module, call: str, name: str) -> Callable[[], None]:
    """Put calls of an attribute in a range; returns what takes it away again."""
    own = vars(owner).get(call)
    inner = getattr(owner, call)

    @wraps(inner)
    def ranged(*arguments: Any, **named: Any) -> Any:
        with record_function(name):
            return inner(*arguments, **named)

    def take_away() -> None:
        if own is None:
            delattr(owner, call)
        else:
            setattr(owner, call, own)

    setattr(owner, call, ranged)
    return take_away
