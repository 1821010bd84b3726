"""The programs of cross-entropy with soft targets: one row of classes each.

The sum of exponentials is put together block by block as in arXiv 1805.02867, algorithm 3.
"""

# pyright: reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false
# Inside, numbers are Triton's own types, of which its annotations say little.

import triton
import triton.language as tl


@triton.jit
def forward(logits, targets, loss, normalizer, weight, classes, BLOCK: tl.constexpr):
    """Grid [B]: loss, logarithm of the sum of exponentials, and sum of the targets of a row."""
    row = tl.program_id(0).to(tl.int64)
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    meant = tl.zeros([BLOCK], tl.float32)
    weights = tl.zeros([BLOCK], tl.float32)
    for start in range(0, classes, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < classes
        place = row * classes + column
        value = tl.load(logits + place, mask=inside, other=float("-inf")).to(tl.float32)
        target = tl.load(targets + place, mask=inside, other=0.0).to(tl.float32)
        new_highest = tl.maximum(highest, value)
        # Minus infinity less itself is no number: a lane that has met nothing yet counts nothing.
        shrunk = tl.where(highest == new_highest, 1.0, tl.exp(highest - new_highest))
        grown = tl.where(value == new_highest, 1.0, tl.exp(value - new_highest))
        total = total * shrunk + tl.where(inside, grown, 0.0)
        meant += tl.where(target == 0.0, 0.0, target * value)
        weights += target
        highest = new_highest
    top = tl.max(highest, 0)
    of_row = top + tl.log(tl.sum(total * tl.exp(highest - top), 0))
    weight_of_row = tl.sum(weights, 0)
    tl.store(loss + row, weight_of_row * of_row - tl.sum(meant, 0))
    tl.store(normalizer + row, of_row)
    tl.store(weight + row, weight_of_row)


@triton.jit
def backward(
    logits, targets, normalizer, weight, loss_grad, logits_grad, classes, BLOCK: tl.constexpr
):
    """Grid [B, blocks]: gradient of a row's logits, (softmax · weight - target) · the loss's."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < classes
    place = row * classes + column
    value = tl.load(logits + place, mask=inside, other=0.0).to(tl.float32)
    target = tl.load(targets + place, mask=inside, other=0.0).to(tl.float32)
    chance = tl.exp(value - tl.load(normalizer + row))
    grad = (chance * tl.load(weight + row) - target) * tl.load(loss_grad + row)
    tl.store(logits_grad + place, grad.to(logits_grad.dtype.element_ty), mask=inside)
