"""The programs of layer norms that take in the residual sum beside them.

A program goes through a share ("group") of all tiles of rows, a row being the C channels of a
token, and keeps its sums for the parameters' gradients: no two programs add to the same number.
"""

# pyright: reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false
# Inside, numbers are Triton's own types, of which its annotations say little.

import triton
import triton.language as tl


@triton.jit
def _normalized(x, inside, C: tl.constexpr, EPS: tl.constexpr):
    """Rows [R, C] of mean 0 and deviation 1, and 1 / the deviation they had."""
    mean = tl.sum(x, 1) / C
    centred = tl.where(inside, x - mean[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, 1) / C + EPS)
    return centred * inverse[:, None], inverse


@triton.jit
def _through_norm(normalized_grad, normalized, inverse, C: tl.constexpr):
    """Gradient of `_normalized`'s input."""
    along = tl.sum(normalized_grad * normalized, 1) / C
    level = tl.sum(normalized_grad, 1) / C
    return (normalized_grad - level[:, None] - normalized * along[:, None]) * inverse[:, None]


@triton.jit
def _scales(scale, row, rows, rows_per_image, SCALED: tl.constexpr):
    """Each row's factor on the branch: its image's."""
    if SCALED:
        return tl.load(scale + row // rows_per_image, mask=row < rows, other=0.0)
    return tl.full(row.shape, 1.0, tl.float32)


@triton.jit
def add_scaled(
    x, branch, scale, total, elements, elements_per_image,
    BLOCK: tl.constexpr, ADDED: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Grid [blocks]: (x if ADDED, else nothing) + branch · scale of its image, rounded once."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < elements
    value = tl.load(branch + place, mask=inside, other=0.0).to(tl.float32)
    if SCALED:
        value *= tl.load(scale + place // elements_per_image, mask=inside, other=0.0)
    if ADDED:
        value += tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(total + place, value.to(total.dtype.element_ty), mask=inside)


@triton.jit
def forward(
    x, branch, scale, weight, bias, total, normal, inverse_deviation, rows, rows_per_image,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr, EPS: tl.constexpr,
    BRANCHED: tl.constexpr, SCALED: tl.constexpr, POST: tl.constexpr,
):  # fmt: skip
    """Grid [tiles of rows]. POST normalises the branch, else what is the norm's is the sum.

    Without POST ``total`` (if BRANCHED) is x + branch · scale and ``normal`` its norm; with it
    ``total`` is x + norm(branch) · scale and there is no ``normal``.
    """
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    channel = tl.arange(0, BLOCK_C)
    inside = (row[:, None] < rows) & (channel[None, :] < C)
    place = row.to(tl.int64)[:, None] * C + channel[None, :]
    factor = _scales(scale, row, rows, rows_per_image, SCALED)[:, None]
    weights = tl.load(weight + channel, mask=channel < C, other=0.0)[None, :]
    biases = tl.load(bias + channel, mask=channel < C, other=0.0)[None, :]
    stream = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if POST:
        added = tl.load(branch + place, mask=inside, other=0.0).to(tl.float32)
        normalized, inverse = _normalized(added, inside, C, EPS)
        stream += (normalized * weights + biases) * factor
    else:
        if BRANCHED:
            stream += tl.load(branch + place, mask=inside, other=0.0).to(tl.float32) * factor
        normalized, inverse = _normalized(stream, inside, C, EPS)
        made = normalized * weights + biases
        tl.store(normal + place, made.to(normal.dtype.element_ty), mask=inside)
    if BRANCHED:
        tl.store(total + place, stream.to(total.dtype.element_ty), mask=inside)
    tl.store(inverse_deviation + row, inverse, mask=row < rows)


@triton.jit
def backward(
    normed, scale, weight, inverse_deviation, total_grad, normal_grad,
    x_grad, branch_grad, weight_grad, bias_grad, rows, rows_per_image, groups,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
    BRANCHED: tl.constexpr, SCALED: tl.constexpr, POST: tl.constexpr, ADDED: tl.constexpr,
):  # fmt: skip
    """Grid [groups]: gradients of a group of rows, and its sums for weight and bias, [groups, C].

    ``normed`` is what was normalised. ADDED: ``total`` has a gradient. With POST ``x_grad`` is
    left alone: it is ``total_grad`` itself.
    """
    channel = tl.arange(0, BLOCK_C)
    weights = tl.load(weight + channel, mask=channel < C, other=0.0)[None, :]
    weight_sum = tl.zeros([BLOCK_C], tl.float32)
    bias_sum = tl.zeros([BLOCK_C], tl.float32)
    for tile in range(tl.program_id(0), (rows + BLOCK_R - 1) // BLOCK_R, groups):
        row = tile * BLOCK_R + tl.arange(0, BLOCK_R)
        inside = (row[:, None] < rows) & (channel[None, :] < C)
        place = row.to(tl.int64)[:, None] * C + channel[None, :]
        factor = _scales(scale, row, rows, rows_per_image, SCALED)[:, None]
        inverse = tl.load(inverse_deviation + row, mask=row < rows, other=0.0)
        values = tl.load(normed + place, mask=inside, other=0.0).to(tl.float32)
        mean = tl.sum(values, 1) / C
        normalized = tl.where(inside, (values - mean[:, None]) * inverse[:, None], 0.0)
        if POST:
            grad = tl.load(total_grad + place, mask=inside, other=0.0).to(tl.float32) * factor
        else:
            grad = tl.load(normal_grad + place, mask=inside, other=0.0).to(tl.float32)
        weight_sum += tl.sum(grad * normalized, 0)
        bias_sum += tl.sum(grad, 0)
        grad = _through_norm(grad * weights, normalized, inverse, C)
        if POST:
            tl.store(branch_grad + place, grad.to(branch_grad.dtype.element_ty), mask=inside)
        else:
            if ADDED:
                grad += tl.load(total_grad + place, mask=inside, other=0.0).to(tl.float32)
            tl.store(x_grad + place, grad.to(x_grad.dtype.element_ty), mask=inside)
            if BRANCHED:
                grad *= factor
                tl.store(branch_grad + place, grad.to(branch_grad.dtype.element_ty), mask=inside)
    place = tl.program_id(0) * C + channel
    tl.store(weight_grad + place, weight_sum, mask=channel < C)
    tl.store(bias_grad + place, bias_sum, mask=channel < C)
