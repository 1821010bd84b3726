"""What the programs of window attention do with tiles of tokens: load, scale, compare, store.

Letters as in `pretrain.kernels.attention_programs`.
"""

# pyright: reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false
# Inside, numbers are Triton's own types, of which its annotations say little.

import triton
import triton.language as tl
from triton import knobs

_INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def product(left, right, PRECISION: tl.constexpr):
    """Product of two tiles, summed in fp32."""
    if _INTERPRETED:  # whose own product takes the bits of bf16 for integers (triton 3.9)
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, input_precision=PRECISION)


@triton.jit
def locate(
    number, token, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
):  # fmt: skip
    """Where the tokens of a window lie: row in the flattened maps, and region of the shift."""
    COLUMNS: tl.constexpr = WIDTH // WINDOW
    WINDOWS: tl.constexpr = (HEIGHT // WINDOW) * COLUMNS
    inside = number % WINDOWS
    down, right = inside // COLUMNS, inside % COLUMNS
    y = down * WINDOW + token // WINDOW + SHIFT
    x = right * WINDOW + token % WINDOW + SHIFT
    y = tl.where(y >= HEIGHT, y - HEIGHT, y)
    x = tl.where(x >= WIDTH, x - WIDTH, x)
    rows = (number // WINDOWS * HEIGHT + y) * WIDTH + x
    # Only windows at the far sides hold what came round, and it is their last rows or columns.
    came = (token // WINDOW >= WINDOW - SHIFT).to(tl.int32)
    came += 2 * (token % WINDOW >= WINDOW - SHIFT).to(tl.int32)
    at_sides = 2 * (right == COLUMNS - 1) + 1 * (down == HEIGHT // WINDOW - 1)
    return rows.to(tl.int64), came & at_sides


@triton.jit
def load_vectors(start, rows, stride, valid, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Vectors of D numbers at ``start + rows * stride``: [tile, BLOCK_D], zeros where none are."""
    depth = tl.arange(0, BLOCK_D)
    inside = valid[:, None] & (depth[None, :] < D)
    return tl.load(start + rows[:, None] * stride + depth[None, :], mask=inside, other=0.0)


@triton.jit
def store_vectors(values, start, rows, stride, valid, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write vectors of D numbers where `load_vectors` would read them."""
    depth = tl.arange(0, BLOCK_D)
    inside = valid[:, None] & (depth[None, :] < D)
    values = values.to(start.dtype.element_ty)
    tl.store(start + rows[:, None] * stride + depth[None, :], values, mask=inside)


@triton.jit
def to_length(vectors, length):
    """Scale vectors to a length: the scaled ones, the unit ones in fp32, and 1 / |vector|."""
    precise = vectors.to(tl.float32)
    norm = tl.sqrt(tl.sum(precise * precise, 1))
    inverse = 1.0 / tl.maximum(norm, 1e-12)
    unit = precise * inverse[:, None]
    return (unit * length).to(vectors.dtype), unit, tl.where(norm < 1e-12, -inverse, inverse)


@triton.jit
def through_length(grad, unit, inverse):
    """Gradient of unit vectors to one of the vectors; a negative inverse marks those too short."""
    along = tl.where(inverse > 0, tl.sum(grad * unit, 1), 0.0)
    return (grad - unit * along[:, None]) * tl.abs(inverse)[:, None]


@triton.jit
def load_bias(bias, head, query, key, TOKENS: tl.constexpr):
    """Bias of a head between two tiles; minus infinity for keys that there are none of."""
    start = bias + head * TOKENS * TOKENS
    valid = (query[:, None] < TOKENS) & (key[None, :] < TOKENS)
    tile = tl.load(start + query[:, None] * TOKENS + key[None, :], mask=valid, other=0.0)
    return tl.where(key[None, :] < TOKENS, tile.to(tl.float32), float("-inf"))


@triton.jit
def logits_of(
    queries, keys, bias, query_region, key_region,
    SCALE: tl.constexpr, MASKED: tl.constexpr, SHIFT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Logits of a tile, fp32: products, bias, and what keeps neighbours by the shift apart."""
    logits = product(queries, tl.trans(keys), PRECISION) * SCALE + bias
    if SHIFT > 0:
        logits += tl.where(query_region[:, None] != key_region[None, :], MASKED, 0.0)
    return logits


@triton.jit
def weights_and_grads(
    queries, keys, values, out_grad, normalizer, bias, query_region, key_region,
    SCALE: tl.constexpr, MASKED: tl.constexpr, SHIFT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention weights of a tile and their gradient, both fp32."""
    logits = logits_of(
        queries, keys, bias, query_region, key_region, SCALE, MASKED, SHIFT, PRECISION
    )
    weights = tl.exp(logits - normalizer[:, None])
    return weights, product(out_grad, tl.trans(values), PRECISION)


@triton.jit
def load_queries(
    qkv, normalizer, out_grad, number, head, query, rows, length,
    HEADS: tl.constexpr, D: tl.constexpr, TOKENS: tl.constexpr, BLOCK_D: tl.constexpr,
    COSINE: tl.constexpr,
):  # fmt: skip
    """What the backward pass needs of a tile of queries."""
    C: tl.constexpr = HEADS * D
    valid = query < TOKENS
    queries = load_vectors(qkv + head * D, rows, 3 * C, valid, D, BLOCK_D)
    grad = load_vectors(out_grad + head * D, rows, C, valid, D, BLOCK_D)
    of_row = tl.load(normalizer + (number * HEADS + head) * TOKENS + query, mask=valid, other=0.0)
    unit, inverse = queries.to(tl.float32), of_row
    if COSINE:
        queries, unit, inverse = to_length(queries, length)
    return queries, unit, inverse, grad, of_row


@triton.jit
def load_keys(
    qkv, head, key, rows, HEADS: tl.constexpr, D: tl.constexpr, TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr, COSINE: tl.constexpr,
):  # fmt: skip
    """What the backward pass needs of a tile of keys."""
    C: tl.constexpr = HEADS * D
    valid = key < TOKENS
    keys = load_vectors(qkv + C + head * D, rows, 3 * C, valid, D, BLOCK_D)
    values = load_vectors(qkv + 2 * C + head * D, rows, 3 * C, valid, D, BLOCK_D)
    unit, inverse = keys.to(tl.float32), tl.sum(keys.to(tl.float32), 1)
    if COSINE:
        keys, unit, inverse = to_length(keys, 1.0)
    return keys, unit, inverse, values


@triton.jit
def sum_slopes(
    qkv, bias, slopes_level, queries, grad, of_row, number, head, query, region,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
    BLOCK_D: tl.constexpr, COSINE: tl.constexpr, SCALE: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Mean of the weights' gradients over each row of several tiles, which is kept."""
    TOKENS: tl.constexpr = WINDOW * WINDOW
    level = tl.zeros([TILE], tl.float32)
    for other in range(0, TILES):
        key = other * TILE + tl.arange(0, TILE)
        key_rows, key_region = locate(number, key, HEIGHT, WIDTH, WINDOW, SHIFT)
        keys, _, _, values = load_keys(qkv, head, key, key_rows, HEADS, D, TOKENS, BLOCK_D, COSINE)
        bias_tile = load_bias(bias, head, query, key, TOKENS)
        weights, weights_grad = weights_and_grads(
            queries, keys, values, grad, of_row, bias_tile, region, key_region,
            SCALE, MASKED, SHIFT, PRECISION,
        )  # fmt: skip
        level += tl.sum(weights * weights_grad, 1)
    place = slopes_level + (number * HEADS + head) * TOKENS + query
    tl.store(place, level, mask=query < TOKENS)
    return level


@triton.jit
def store_bias_grad(values, start, place, query, key, TOKENS: tl.constexpr):
    """Write the part of two tiles into one [K, K] of many."""
    valid = (query[:, None] < TOKENS) & (key[None, :] < TOKENS)
    start += place * TOKENS * TOKENS
    tl.store(start + query[:, None] * TOKENS + key[None, :], values, mask=valid)
