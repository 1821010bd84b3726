"""Kinds of operation, by the names that torch gives to operators and kernels. No torch."""

PRODUCTS = "matrix products"
ATTENTION = "attention"
POSITION_BIAS = "position bias"
LAYOUT = "window, layout copies"
RESIDUAL = "residual, drop path"
COMPILED = "compiled, other"
COLLECTIVES = "collectives"
COPIES = "host-device copies"
GRADIENTS = "gradients, ZeRO"
HOST = "host: Python, dispatch"
IDLE = "device idle"
OTHER = "other"

KINDS = (
    PRODUCTS,
    ATTENTION,
    POSITION_BIAS,
    "layer norm",
    "GELU",
    LAYOUT,
    "casts",
    RESIDUAL,
    COMPILED,
    "loss",
    GRADIENTS,
    "optimizer",
    COLLECTIVES,
    COPIES,
    "augmentation",
    "waiting for data",
    "evaluation",
    "saving",
    OTHER,
    HOST,
    IDLE,
)
"""In the order of the page. Attention is scores, softmax and their product with the values."""

OF_PARTS = {
    "data": "waiting for data",
    "augment": "augmentation",
    "loss": "loss",
    "optimizer": "optimizer",
    "evaluation": "evaluation",
    "save": "saving",
}
"""Parts of a step that are of one kind, whatever they compute."""

WITH_PRODUCTS = (PRODUCTS, ATTENTION)
"""Kinds whose multiply-adds are counted."""

_BY_OPERATOR = {
    "linear addmm mm bmm matmul baddbmm einsum conv1d conv2d convolution _convolution": PRODUCTS,
    "scaled_dot_product_attention": ATTENTION,
    "layer_norm native_layer_norm": "layer norm",
    "gelu": "GELU",
    "to _to_copy type_as": "casts",
    "roll pad constant_pad_nd reshape flatten contiguous clone copy_ cat stack view permute "
    "transpose t unflatten unbind slice select as_strided expand unsqueeze squeeze index_select "
    "narrow chunk split _unsafe_view alias repeat_interleave pixel_shuffle": LAYOUT,
}
_OPERATORS = {
    f"aten::{operator}": kind for names, kind in _BY_OPERATOR.items() for operator in names.split()
}
_OURS = {
    "window_attention": ATTENTION,
    "residual_layer_norm": "layer norm",
    "add_scaled": RESIDUAL,
    "soft_target_cross_entropy": "loss",
}
"""Operators of `pretrain.kernels`, which end in ``_backward`` in the backward pass."""
_COMPILED = ("Torch-Compiled Region", "CompiledFunction", "## Call CompiledFxGraph")
_ON_THE_WIRE = ("c10d::", "gloo:", "nccl:", "record_param_comms")


def is_collective(name: str) -> bool:
    """Whether an event of the host is a collective, or what starts one."""
    return name.startswith(_ON_THE_WIRE)


def kind_of_operator(name: str, place: str, unit: str) -> str:
    """The kind of an operator that no other operator called.

    Args:
        name: such as ``aten::addmm``.
        place: stage or other part of the network that called it; "" outside.
        unit: part of the block that called it.
    """
    if is_collective(name):
        return COLLECTIVES
    if unit == "position bias":
        return POSITION_BIAS
    ours = name.removeprefix("swin_pretrain::").removesuffix("_backward")
    kind = _OPERATORS.get(name) or _OURS.get(ours)
    if kind is not None:
        return kind
    if "LayerNorm" in name:  # apex's
        return "layer norm"
    if name.startswith(_COMPILED):
        return COMPILED
    if unit == "attention":
        # Beside softmax: V1 adds the mask to the bias, V2 scales queries and keys.
        return ATTENTION
    return RESIDUAL if place.startswith("stage") else OTHER


def kind_of_kernel(name: str, category: str, launched_by: str) -> str:
    """The kind of what the device did, from its own name or from what launched it.

    Args:
        name: of the kernel, or such as ``Memcpy HtoD (Pinned -> Device)``.
        category: the trace's: ``kernel``, ``gpu_memcpy`` or ``gpu_memset``.
        launched_by: kind of the operator.
    """
    if name.lower().startswith("nccl"):
        return COLLECTIVES
    if category == "gpu_memcpy" and ("HtoD" in name or "DtoH" in name):
        return COPIES
    return launched_by or OTHER
