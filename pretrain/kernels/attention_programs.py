"""The programs of window attention: forward, and backward for queries, keys, values and bias.

A program belongs to one head and one tile of tokens, and goes through a share ("group") of all
windows, so that what belongs to the head alone, its bias and the gradient of that, stays with it:
no two programs add to the same number, and the sums have one order.

Tokens are read from and written to the maps where they lie. Letters: K tokens of a window, D head
width, C channels, A heads. Windows of up to 64 tokens are one tile; larger ones are cut into tiles
of 64, and a row's softmax is put together tile by tile as in arXiv 2205.14135, algorithm 1.
"""

# pyright: reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false
# Inside, numbers are Triton's own types, of which its annotations say little.

import triton
import triton.language as tl
from triton import knobs

_INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def _dot(left, right, PRECISION: tl.constexpr):
    """Product of two tiles, summed in fp32."""
    if _INTERPRETED:  # whose own product takes the bits of bf16 for integers (triton 3.9)
        left, right = left.to(tl.float32), right.to(tl.float32)
    return tl.dot(left, right, input_precision=PRECISION)


@triton.jit
def _locate(
    number, token, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, WINDOW: tl.constexpr,
    SHIFT: tl.constexpr,
):  # fmt: skip
    """Where the tokens of a window lie: row in the flattened maps, and region of the shift."""
    COLUMNS: tl.constexpr = WIDTH // WINDOW
    WINDOWS: tl.constexpr = (HEIGHT // WINDOW) * COLUMNS
    inside = number % WINDOWS
    y = (inside // COLUMNS) * WINDOW + token // WINDOW
    x = (inside % COLUMNS) * WINDOW + token % WINDOW
    down = (y >= HEIGHT - WINDOW).to(tl.int32) + (y >= HEIGHT - SHIFT).to(tl.int32)
    right = (x >= WIDTH - WINDOW).to(tl.int32) + (x >= WIDTH - SHIFT).to(tl.int32)
    y = (y + SHIFT) % HEIGHT
    x = (x + SHIFT) % WIDTH
    rows = (number // WINDOWS * HEIGHT + y) * WIDTH + x
    return rows.to(tl.int64), 3 * down + right


@triton.jit
def _load(start, rows, stride, valid, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Vectors of D numbers at ``start + rows * stride``: [tile, BLOCK_D], zeros where none are."""
    depth = tl.arange(0, BLOCK_D)
    inside = valid[:, None] & (depth[None, :] < D)
    return tl.load(start + rows[:, None] * stride + depth[None, :], mask=inside, other=0.0)


@triton.jit
def _store(values, start, rows, stride, valid, D: tl.constexpr, BLOCK_D: tl.constexpr):
    depth = tl.arange(0, BLOCK_D)
    inside = valid[:, None] & (depth[None, :] < D)
    values = values.to(start.dtype.element_ty)
    tl.store(start + rows[:, None] * stride + depth[None, :], values, mask=inside)


@triton.jit
def _to_length(vectors, length):
    """Scale vectors to a length: the scaled ones, the unit ones in fp32, and 1 / |vector|."""
    precise = vectors.to(tl.float32)
    norm = tl.sqrt(tl.sum(precise * precise, 1))
    inverse = 1.0 / tl.maximum(norm, 1e-12)
    unit = precise * inverse[:, None]
    return (unit * length).to(vectors.dtype), unit, tl.where(norm < 1e-12, -inverse, inverse)


@triton.jit
def _through_length(grad, unit, inverse):
    """Gradient of unit vectors to one of the vectors; a negative inverse marks those too short."""
    along = tl.where(inverse > 0, tl.sum(grad * unit, 1), 0.0)
    return (grad - unit * along[:, None]) * tl.abs(inverse)[:, None]


@triton.jit
def _bias_tile(bias, head, query, key, TOKENS: tl.constexpr):
    """Bias of a head between two tiles; minus infinity for keys that there are none of."""
    start = bias + head * TOKENS * TOKENS
    valid = (query[:, None] < TOKENS) & (key[None, :] < TOKENS)
    tile = tl.load(start + query[:, None] * TOKENS + key[None, :], mask=valid, other=0.0)
    return tl.where(key[None, :] < TOKENS, tile.to(tl.float32), float("-inf"))


@triton.jit
def _logits(
    queries, keys, bias, query_region, key_region,
    SCALE: tl.constexpr, MASKED: tl.constexpr, SHIFT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    logits = _dot(queries, tl.trans(keys), PRECISION) * SCALE + bias
    if SHIFT > 0:
        logits += tl.where(query_region[:, None] != key_region[None, :], MASKED, 0.0)
    return logits


@triton.jit
def attention_forward(
    qkv, bias, logit_scale, out, normalizer, windows, groups,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
    BLOCK_D: tl.constexpr, COSINE: tl.constexpr, SCALE: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid [A·tiles, groups]: the output of one tile of queries in every window of a group."""
    TOKENS: tl.constexpr = WINDOW * WINDOW
    C: tl.constexpr = HEADS * D
    head, tile = tl.program_id(0) // TILES, tl.program_id(0) % TILES
    query = tile * TILE + tl.arange(0, TILE)
    length = tl.load(logit_scale + head) if COSINE else 1.0
    bias_tile = _bias_tile(bias, head, query, tl.arange(0, TILE), TOKENS)
    for number in range(tl.program_id(1), windows, groups):
        rows, region = _locate(number, query, HEIGHT, WIDTH, WINDOW, SHIFT)
        queries = _load(qkv + head * D, rows, 3 * C, query < TOKENS, D, BLOCK_D)
        if COSINE:
            queries, _, _ = _to_length(queries, length)
        highest = tl.full([TILE], float("-inf"), tl.float32)
        total = tl.zeros([TILE], tl.float32)
        mixed = tl.zeros([TILE, BLOCK_D], tl.float32)
        for other in range(0, TILES):
            key = other * TILE + tl.arange(0, TILE)
            key_rows, key_region = _locate(number, key, HEIGHT, WIDTH, WINDOW, SHIFT)
            keys = _load(qkv + C + head * D, key_rows, 3 * C, key < TOKENS, D, BLOCK_D)
            values = _load(qkv + 2 * C + head * D, key_rows, 3 * C, key < TOKENS, D, BLOCK_D)
            if COSINE:
                keys, _, _ = _to_length(keys, 1.0)
            if TILES > 1:
                bias_tile = _bias_tile(bias, head, query, key, TOKENS)
            logits = _logits(
                queries, keys, bias_tile, region, key_region, SCALE, MASKED, SHIFT, PRECISION
            )
            new_highest = tl.maximum(highest, tl.max(logits, 1))
            weights = tl.exp(logits - new_highest[:, None])
            shrink = tl.exp(highest - new_highest)
            total = total * shrink + tl.sum(weights, 1)
            mixed = mixed * shrink[:, None]
            mixed += _dot(weights.to(values.dtype), values, PRECISION)
            highest = new_highest
        _store(mixed / total[:, None], out + head * D, rows, C, query < TOKENS, D, BLOCK_D)
        place = normalizer + (number * HEADS + head) * TOKENS + query
        tl.store(place, highest + tl.log(total), mask=query < TOKENS)


@triton.jit
def _weights(
    queries, keys, values, out_grad, normalizer, bias, query_region, key_region,
    SCALE: tl.constexpr, MASKED: tl.constexpr, SHIFT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention weights of a tile and their gradient, both fp32."""
    logits = _logits(queries, keys, bias, query_region, key_region, SCALE, MASKED, SHIFT, PRECISION)
    weights = tl.exp(logits - normalizer[:, None])
    return weights, _dot(out_grad, tl.trans(values), PRECISION)


@triton.jit
def _load_queries(
    qkv, normalizer, out_grad, number, head, query, rows, length,
    HEADS: tl.constexpr, D: tl.constexpr, TOKENS: tl.constexpr, BLOCK_D: tl.constexpr,
    COSINE: tl.constexpr,
):  # fmt: skip
    """What the backward pass needs of a tile of queries."""
    C: tl.constexpr = HEADS * D
    valid = query < TOKENS
    queries = _load(qkv + head * D, rows, 3 * C, valid, D, BLOCK_D)
    grad = _load(out_grad + head * D, rows, C, valid, D, BLOCK_D)
    of_row = tl.load(normalizer + (number * HEADS + head) * TOKENS + query, mask=valid, other=0.0)
    unit, inverse = queries.to(tl.float32), of_row
    if COSINE:
        queries, unit, inverse = _to_length(queries, length)
    return queries, unit, inverse, grad, of_row


@triton.jit
def _load_keys(
    qkv, head, key, rows, HEADS: tl.constexpr, D: tl.constexpr, TOKENS: tl.constexpr,
    BLOCK_D: tl.constexpr, COSINE: tl.constexpr,
):  # fmt: skip
    """What the backward pass needs of a tile of keys."""
    C: tl.constexpr = HEADS * D
    valid = key < TOKENS
    keys = _load(qkv + C + head * D, rows, 3 * C, valid, D, BLOCK_D)
    values = _load(qkv + 2 * C + head * D, rows, 3 * C, valid, D, BLOCK_D)
    unit, inverse = keys.to(tl.float32), tl.sum(keys.to(tl.float32), 1)
    if COSINE:
        keys, unit, inverse = _to_length(keys, 1.0)
    return keys, unit, inverse, values


@triton.jit
def attention_backward_queries(
    qkv, bias, logit_scale, normalizer, out_grad, slopes_level, qkv_grad, bias_grad, scale_grad,
    windows, groups,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
    BLOCK_D: tl.constexpr, COSINE: tl.constexpr, SCALE: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid [A·tiles, groups]: gradients of one tile of queries; where it is the only one, of all.

    The gradient of a logit is its weight's, less their mean over the row, times the weight. The
    means are taken of what this program computes, not of the rounded output: a row's gradients then
    add up to zero, which those of the bias network and of the logit scale rest on.

    ``slopes_level``, fp32 [B·N, A, K], takes the means, if there are more tiles; ``bias_grad``,
    fp32 [groups, A, K, K], is written if there are not; ``scale_grad``, fp32 [groups, A, tiles],
    if COSINE.
    """
    TOKENS: tl.constexpr = WINDOW * WINDOW
    C: tl.constexpr = HEADS * D
    head, tile = tl.program_id(0) // TILES, tl.program_id(0) % TILES
    query = tile * TILE + tl.arange(0, TILE)
    length = tl.load(logit_scale + head) if COSINE else 1.0
    bias_tile = _bias_tile(bias, head, query, tl.arange(0, TILE), TOKENS)
    bias_sum = tl.zeros([TILE, TILE], tl.float32)
    scale_sum = tl.zeros([TILE], tl.float32)
    for number in range(tl.program_id(1), windows, groups):
        rows, region = _locate(number, query, HEIGHT, WIDTH, WINDOW, SHIFT)
        queries, unit, inverse, grad, of_row = _load_queries(
            qkv, normalizer, out_grad, number, head, query, rows, length,
            HEADS, D, TOKENS, BLOCK_D, COSINE,
        )  # fmt: skip
        level = tl.zeros([TILE], tl.float32)
        if TILES > 1:
            for other in range(0, TILES):
                key = other * TILE + tl.arange(0, TILE)
                key_rows, key_region = _locate(number, key, HEIGHT, WIDTH, WINDOW, SHIFT)
                keys, _, _, values = _load_keys(
                    qkv, head, key, key_rows, HEADS, D, TOKENS, BLOCK_D, COSINE
                )
                bias_tile = _bias_tile(bias, head, query, key, TOKENS)
                weights, weights_grad = _weights(
                    queries, keys, values, grad, of_row, bias_tile, region, key_region,
                    SCALE, MASKED, SHIFT, PRECISION,
                )  # fmt: skip
                level += tl.sum(weights * weights_grad, 1)
            place = slopes_level + (number * HEADS + head) * TOKENS + query
            tl.store(place, level, mask=query < TOKENS)
        queries_grad = tl.zeros([TILE, BLOCK_D], tl.float32)
        for other in range(0, TILES):
            key = other * TILE + tl.arange(0, TILE)
            key_rows, key_region = _locate(number, key, HEIGHT, WIDTH, WINDOW, SHIFT)
            keys, key_unit, key_inverse, values = _load_keys(
                qkv, head, key, key_rows, HEADS, D, TOKENS, BLOCK_D, COSINE
            )
            if TILES > 1:
                bias_tile = _bias_tile(bias, head, query, key, TOKENS)
            weights, weights_grad = _weights(
                queries, keys, values, grad, of_row, bias_tile, region, key_region,
                SCALE, MASKED, SHIFT, PRECISION,
            )  # fmt: skip
            if TILES == 1:
                level = tl.sum(weights * weights_grad, 1)
            slopes = weights * (weights_grad - level[:, None])
            queries_grad += _dot(slopes.to(keys.dtype), keys, PRECISION)
            if TILES == 1:
                bias_sum += slopes
                _store_keys_grad(
                    weights, slopes, queries, grad, key_unit, key_inverse, qkv_grad + head * D,
                    key_rows, key < TOKENS, C, D, BLOCK_D, COSINE, SCALE, PRECISION,
                )  # fmt: skip
        queries_grad *= SCALE
        if COSINE:
            scale_sum += tl.sum(queries_grad * unit, 1)
            queries_grad = _through_length(queries_grad * length, unit, inverse)
        _store(queries_grad, qkv_grad + head * D, rows, 3 * C, query < TOKENS, D, BLOCK_D)
    if TILES == 1:
        start = bias_grad + (tl.program_id(1) * HEADS + head) * TOKENS * TOKENS
        key = tl.arange(0, TILE)
        valid = (query[:, None] < TOKENS) & (key[None, :] < TOKENS)
        tl.store(start + query[:, None] * TOKENS + key[None, :], bias_sum, mask=valid)
    if COSINE:
        place = scale_grad + (tl.program_id(1) * HEADS + head) * TILES + tile
        tl.store(place, tl.sum(scale_sum, 0))


@triton.jit
def _store_keys_grad(
    weights, slopes, queries, grad, unit, inverse, start, rows, valid,
    C: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, COSINE: tl.constexpr,
    SCALE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the gradients of keys and values to which one tile of queries is all that adds."""
    values_grad = _dot(tl.trans(weights.to(grad.dtype)), grad, PRECISION)
    keys_grad = _dot(tl.trans(slopes.to(queries.dtype)), queries, PRECISION)
    keys_grad *= SCALE
    if COSINE:
        keys_grad = _through_length(keys_grad, unit, inverse)
    _store(keys_grad, start + C, rows, 3 * C, valid, D, BLOCK_D)
    _store(values_grad, start + 2 * C, rows, 3 * C, valid, D, BLOCK_D)


@triton.jit
def attention_backward_keys(
    qkv, bias, logit_scale, normalizer, out_grad, slopes_level, qkv_grad, windows, groups,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
    BLOCK_D: tl.constexpr, COSINE: tl.constexpr, SCALE: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid [A·tiles, groups]: gradients of one tile of keys and values."""
    TOKENS: tl.constexpr = WINDOW * WINDOW
    C: tl.constexpr = HEADS * D
    head, tile = tl.program_id(0) // TILES, tl.program_id(0) % TILES
    key = tile * TILE + tl.arange(0, TILE)
    length = tl.load(logit_scale + head) if COSINE else 1.0
    for number in range(tl.program_id(1), windows, groups):
        rows, region = _locate(number, key, HEIGHT, WIDTH, WINDOW, SHIFT)
        keys, unit, inverse, values = _load_keys(
            qkv, head, key, rows, HEADS, D, TOKENS, BLOCK_D, COSINE
        )
        keys_grad = tl.zeros([TILE, BLOCK_D], tl.float32)
        values_grad = tl.zeros([TILE, BLOCK_D], tl.float32)
        for other in range(0, TILES):
            query = other * TILE + tl.arange(0, TILE)
            query_rows, query_region = _locate(number, query, HEIGHT, WIDTH, WINDOW, SHIFT)
            queries, _, _, grad, of_row = _load_queries(
                qkv, normalizer, out_grad, number, head, query, query_rows, length,
                HEADS, D, TOKENS, BLOCK_D, COSINE,
            )  # fmt: skip
            bias_tile = _bias_tile(bias, head, query, key, TOKENS)
            weights, weights_grad = _weights(
                queries, keys, values, grad, of_row, bias_tile, query_region, region,
                SCALE, MASKED, SHIFT, PRECISION,
            )  # fmt: skip
            place = slopes_level + (number * HEADS + head) * TOKENS + query
            level = tl.load(place, mask=query < TOKENS, other=0.0)
            slopes = weights * (weights_grad - level[:, None])
            weights, slopes = weights.to(grad.dtype), slopes.to(queries.dtype)
            values_grad += _dot(tl.trans(weights), grad, PRECISION)
            keys_grad += _dot(tl.trans(slopes), queries, PRECISION)
        keys_grad *= SCALE
        if COSINE:
            keys_grad = _through_length(keys_grad, unit, inverse)
        start = qkv_grad + head * D
        _store(keys_grad, start + C, rows, 3 * C, key < TOKENS, D, BLOCK_D)
        _store(values_grad, start + 2 * C, rows, 3 * C, key < TOKENS, D, BLOCK_D)


@triton.jit
def attention_backward_bias(
    qkv, bias, logit_scale, normalizer, out_grad, slopes_level, bias_grad, windows, groups,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
    BLOCK_D: tl.constexpr, COSINE: tl.constexpr, SCALE: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid [A·tiles·tiles, groups]: gradient of the bias between two tiles, [groups, A, K, K]."""
    TOKENS: tl.constexpr = WINDOW * WINDOW
    head = tl.program_id(0) // (TILES * TILES)
    query = (tl.program_id(0) // TILES % TILES) * TILE + tl.arange(0, TILE)
    key = (tl.program_id(0) % TILES) * TILE + tl.arange(0, TILE)
    length = tl.load(logit_scale + head) if COSINE else 1.0
    bias_tile = _bias_tile(bias, head, query, key, TOKENS)
    bias_sum = tl.zeros([TILE, TILE], tl.float32)
    for number in range(tl.program_id(1), windows, groups):
        rows, region = _locate(number, query, HEIGHT, WIDTH, WINDOW, SHIFT)
        key_rows, key_region = _locate(number, key, HEIGHT, WIDTH, WINDOW, SHIFT)
        queries, _, _, grad, of_row = _load_queries(
            qkv, normalizer, out_grad, number, head, query, rows, length,
            HEADS, D, TOKENS, BLOCK_D, COSINE,
        )  # fmt: skip
        keys, _, _, values = _load_keys(qkv, head, key, key_rows, HEADS, D, TOKENS, BLOCK_D, COSINE)
        weights, weights_grad = _weights(
            queries, keys, values, grad, of_row, bias_tile, region, key_region,
            SCALE, MASKED, SHIFT, PRECISION,
        )  # fmt: skip
        place = slopes_level + (number * HEADS + head) * TOKENS + query
        level = tl.load(place, mask=query < TOKENS, other=0.0)
        slopes = weights * (weights_grad - level[:, None])
        bias_sum += slopes
    start = bias_grad + (tl.program_id(1) * HEADS + head) * TOKENS * TOKENS
    valid = (query[:, None] < TOKENS) & (key[None, :] < TOKENS)
    tl.store(start + query[:, None] * TOKENS + key[None, :], bias_sum, mask=valid)
