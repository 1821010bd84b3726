"""Counts operations and bytes of every operator of a part of a network, without running it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

BIAS_ALIGNMENT = 8
"""Rows of an attention's bias are padded to as many elements, as torch does for its GPU kernels."""
KINDS = {
    "mm addmm bmm convolution convolution_backward": "products",
    "_scaled_dot_product_efficient_attention "
    "_scaled_dot_product_efficient_attention_backward "
    "window_attention window_attention_backward": "attention",
    "native_layer_norm native_layer_norm_backward "
    "residual_layer_norm residual_layer_norm_backward": "layer norm",
    "gelu gelu_backward": "GELU",
    "_to_copy": "casts",
    "roll clone cat copy_ constant_pad_nd slice_backward select_backward stack": "copies",
    "add add_ mul div add_scaled": "residual, drop path",
    "sum": "sums for biases",
}
OTHER = "other"
_NAMESPACES = ("aten", "swin_pretrain")
"""Of torch's operators, and of the kernels in `pretrain.kernels`."""
_BACKWARD_PRODUCTS = 5
"""Of attention: scores again, and two for each of the two products of the forward pass."""
_KIND_OF = {name: kind for names, kind in KINDS.items() for name in names.split()}
_NO_BYTES = (
    "empty",
    "new_empty",
    "empty_like",
    "empty_strided",
    "new_empty_strided",
    "_unsafe_view",
)


@dataclass(frozen=True)
class Operator:
    """One call of an operator.

    Attributes:
        kind: of `KINDS`, or `OTHER`.
        flop: operations of its products, multiplications and additions; 0 without products.
        size_bytes: of its inputs and outputs, once each; elements that a tensor repeats once.
        backward: whether it belongs to the backward pass.
    """

    kind: str
    flop: int
    size_bytes: int
    backward: bool


class _Counter(TorchDispatchMode):
    """Notes every operator that reads or writes memory."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[Operator] = []
        self.backward = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operator and note it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if func.namespace not in _NAMESPACES or func.is_view or name in _NO_BYTES:
            return out
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        size_bytes = sum(_touched_bytes(tensor) for tensor in tensors)
        if name == "roll":
            size_bytes *= len(args[1])  # one pass for each dimension
        flop = _flop(func.overloadpacket, args, kwargs, out)
        kind = _KIND_OF.get(name, OTHER)
        self.operators.append(Operator(kind, flop, size_bytes, self.backward))
        return out


def _flop(packet: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> int:
    counted = flop_registry.get(packet)
    if counted is not None:
        return int(counted(*args, **kwargs, out_val=out))
    if packet.__name__.startswith("window_attention"):
        qkv, bias = args[:2]  # [B, H, W, 3C] and [A, K, K]
        forward = 4 * qkv.numel() // 3 * bias.shape[-1]
        return forward * _BACKWARD_PRODUCTS // 2 if "backward" in packet.__name__ else forward
    return 0


def _touched_bytes(tensor: Tensor) -> int:
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * prod(size for size, stride in pairs if stride)


def count(part: Callable[..., Tensor], *inputs: Tensor) -> list[Operator]:
    """List the operators of a part's forward and backward pass under bf16 autocast.

    Args:
        part: a module or function of fake tensors, made inside `without_storage`.
        inputs: of the part; those that require a gradient get one.
    """
    counter = _Counter()
    for value in inputs:
        value.grad = None  # adding to one would be counted
    with counter:
        with torch.autocast("cpu", torch.bfloat16):
            out = part(*inputs)
        counter.backward = True
        out.backward(torch.empty_like(out))
    return counter.operators


@contextmanager
def without_storage() -> Iterator[None]:
    """Make tensors that have shapes and types only, and take attention for torch's GPU kernel."""
    with FakeTensorMode(), mock.patch.object(F, "scaled_dot_product_attention", _fused_attention):
        yield


def _fused_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, scale: float
) -> Tensor:
    """The memory-efficient kernel, which torch takes on GPUs for biases that are learnt."""
    tokens = attn_mask.shape[-1]
    padded = F.pad(attn_mask, (0, -tokens % BIAS_ALIGNMENT))[..., :tokens]
    bias = padded.expand(*query.shape[:3], tokens)
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    return attend(query, key, value, bias, True, 0.0, False, scale=scale)[0]
