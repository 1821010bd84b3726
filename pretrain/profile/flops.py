"""Floating-point operations of an operator, from the shapes that the trace has. No torch."""

import json
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

_BACKWARD_PRODUCTS = 5
"""Of fused attention: scores again, and two for each of the two products."""


def flops_of(name: str, arguments: Mapping[str, Any]) -> int:
    """Operations of one call, an addition and a multiplication each counted; 0 if not a product.

    Only operators that call none of the others are known here, so that nothing counts twice.

    Args:
        name: of the operator.
        arguments: ``args`` of its event, with ``Input Dims`` and ``Concrete Inputs``.
    """
    shapes = arguments.get("Input Dims") or []
    match name:
        case "aten::mm" | "aten::bmm":
            return _product(shapes, 0)
        case "aten::addmm" | "aten::baddbmm" | "aten::addbmm":
            return _product(shapes, 1)
        case "aten::convolution":
            image, weight = _shape(shapes, 0), _shape(shapes, 1)
            stride, padding = (_list(arguments, index) for index in (3, 4))
            sides = list(zip(image[2:], weight[2:], stride, padding, strict=False))
            if not sides or len(sides) != len(weight) - 2:
                return 0
            out = prod((side + 2 * pad - kernel) // step + 1 for side, kernel, step, pad in sides)
            return 2 * image[0] * out * prod(weight)
        case "aten::convolution_backward":
            # One product as large as the forward's for each of the two gradients that are asked.
            gradient, weight = _shape(shapes, 0), _shape(shapes, 2)
            if not gradient or not weight:
                return 0
            forward = 2 * gradient[0] * prod(gradient[2:]) * prod(weight)
            return forward * sum(bool(asked) for asked in _list(arguments, 10)[:2])
        case "swin_pretrain::window_attention" | "swin_pretrain::window_attention_backward":
            joint, bias = _shape(shapes, 0), _shape(shapes, 1)
            if not joint or not bias:
                return 0
            forward = 2 * 2 * prod(joint) // 3 * bias[1]
            return forward * _BACKWARD_PRODUCTS // 2 if name.endswith("_backward") else forward
    if name.startswith("aten::_scaled_dot_product") and not name.endswith("math"):
        backward = name.removesuffix("_for_cpu").endswith("_backward")
        query, key, value = (_shape(shapes, index + backward) for index in range(3))
        if len(query) != 4 or len(key) != 4 or len(value) != 4:
            return 0
        scores = 2 * prod(query[:3]) * key[2] * query[3]
        values = 2 * prod(query[:3]) * key[2] * value[3]
        return (scores + values) * _BACKWARD_PRODUCTS // 2 if backward else scores + values
    return 0


def _product(shapes: Sequence[Any], first: int) -> int:
    left, right = _shape(shapes, first), _shape(shapes, first + 1)
    return 2 * prod(left) * right[-1] if left and right else 0


def _shape(shapes: Sequence[Any], index: int) -> list[int]:
    return shapes[index] if index < len(shapes) else []


def _list(arguments: Mapping[str, Any], index: int) -> list[Any]:
    """A list among the arguments; the trace has them as text, with Python's words for booleans."""
    values = arguments.get("Concrete Inputs") or []
    text = values[index] if index < len(values) else ""
    lowered = text.replace("True", "true").replace("False", "false")
    return json.loads(lowered) if lowered.startswith("[") else []
