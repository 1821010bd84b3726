"""The programs of window attention: forward, and backward for queries, keys, values and bias.

A program belongs to one head and one tile of tokens, and goes through a share ("group") of all
windows, so that what belongs to the head alone, its bias and the gradient of that, stays with it:
no two programs add to the same number, and the sums have one order.

Tokens are read from and written to the maps where they lie. Letters: K tokens of a window, D head
width, C channels, A heads. Windows of up to 64 tokens are one tile; larger ones are cut into tiles
of 64, and a row's softmax is put together tile by tile as in arXiv 2205.14135, algorithm 1.

The gradient of a logit is its weight's, less their mean over the row, times the weight. The means
are taken of what a program computes, not of the rounded output: a row's gradients then add up to
zero, which those of the bias network and of the logit scale rest on.
"""

# pyright: reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false
# Inside, numbers are Triton's own types, of which its annotations say little.

import triton
import triton.language as tl

from pretrain.kernels.attention_tiles import (
    load_bias,
    load_keys,
    load_queries,
    load_vectors,
    locate,
    logits_of,
    product,
    store_bias_grad,
    store_vectors,
    sum_slopes,
    through_length,
    to_length,
    weights_and_grads,
)


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
    bias_tile = load_bias(bias, head, query, tl.arange(0, TILE), TOKENS)
    for number in range(tl.program_id(1), windows, groups):
        rows, region = locate(number, query, HEIGHT, WIDTH, WINDOW, SHIFT)
        queries = load_vectors(qkv + head * D, rows, 3 * C, query < TOKENS, D, BLOCK_D)
        if COSINE:
            queries, _, _ = to_length(queries, length)
        highest = tl.full([TILE], float("-inf"), tl.float32)
        total = tl.zeros([TILE], tl.float32)
        mixed = tl.zeros([TILE, BLOCK_D], tl.float32)
        for other in range(0, TILES):
            key = other * TILE + tl.arange(0, TILE)
            key_rows, key_region = locate(number, key, HEIGHT, WIDTH, WINDOW, SHIFT)
            keys = load_vectors(qkv + C + head * D, key_rows, 3 * C, key < TOKENS, D, BLOCK_D)
            values = load_vectors(qkv + 2 * C + head * D, key_rows, 3 * C, key < TOKENS, D, BLOCK_D)
            if COSINE:
                keys, _, _ = to_length(keys, 1.0)
            if TILES > 1:
                bias_tile = load_bias(bias, head, query, key, TOKENS)
            logits = logits_of(
                queries, keys, bias_tile, region, key_region, SCALE, MASKED, SHIFT, PRECISION
            )
            new_highest = tl.maximum(highest, tl.max(logits, 1))
            weights = tl.exp(logits - new_highest[:, None])
            shrink = tl.exp(highest - new_highest)
            total = total * shrink + tl.sum(weights, 1)
            mixed = mixed * shrink[:, None]
            mixed += product(weights.to(values.dtype), values, PRECISION)
            highest = new_highest
        store_vectors(mixed / total[:, None], out + head * D, rows, C, query < TOKENS, D, BLOCK_D)
        place = normalizer + (number * HEADS + head) * TOKENS + query
        tl.store(place, highest + tl.log(total), mask=query < TOKENS)


@triton.jit
def attention_backward(
    qkv, bias, logit_scale, normalizer, out_grad, qkv_grad, bias_grad, scale_grad, windows, groups,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
    BLOCK_D: tl.constexpr, COSINE: tl.constexpr, SCALE: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid [A, groups]: all gradients, of windows of one tile.

    ``bias_grad`` is fp32 [groups, A, K, K]; ``scale_grad``, fp32 [groups, A, 1], is written if
    COSINE.
    """
    TOKENS: tl.constexpr = WINDOW * WINDOW
    C: tl.constexpr = HEADS * D
    head = tl.program_id(0)
    token = tl.arange(0, TILE)
    length = tl.load(logit_scale + head) if COSINE else 1.0
    bias_tile = load_bias(bias, head, token, token, TOKENS)
    bias_sum = tl.zeros([TILE, TILE], tl.float32)
    scale_sum = tl.zeros([TILE], tl.float32)
    for number in range(tl.program_id(1), windows, groups):
        rows, region = locate(number, token, HEIGHT, WIDTH, WINDOW, SHIFT)
        queries, unit, inverse, grad, of_row = load_queries(
            qkv, normalizer, out_grad, number, head, token, rows, length,
            HEADS, D, TOKENS, BLOCK_D, COSINE,
        )  # fmt: skip
        keys, key_unit, key_inverse, values = load_keys(
            qkv, head, token, rows, HEADS, D, TOKENS, BLOCK_D, COSINE
        )
        weights, weights_grad = weights_and_grads(
            queries, keys, values, grad, of_row, bias_tile, region, region,
            SCALE, MASKED, SHIFT, PRECISION,
        )  # fmt: skip
        slopes = weights * (weights_grad - tl.sum(weights * weights_grad, 1)[:, None])
        bias_sum += slopes
        weights, slopes = weights.to(grad.dtype), slopes.to(queries.dtype)
        values_grad = product(tl.trans(weights), grad, PRECISION)
        keys_grad = product(tl.trans(slopes), queries, PRECISION) * SCALE
        queries_grad = product(slopes, keys, PRECISION) * SCALE
        if COSINE:
            scale_sum += tl.sum(queries_grad * unit, 1)
            queries_grad = through_length(queries_grad * length, unit, inverse)
            keys_grad = through_length(keys_grad, key_unit, key_inverse)
        start = qkv_grad + head * D
        store_vectors(queries_grad, start, rows, 3 * C, token < TOKENS, D, BLOCK_D)
        store_vectors(keys_grad, start + C, rows, 3 * C, token < TOKENS, D, BLOCK_D)
        store_vectors(values_grad, start + 2 * C, rows, 3 * C, token < TOKENS, D, BLOCK_D)
    place = tl.program_id(1) * HEADS + head
    store_bias_grad(bias_sum, bias_grad, place, token, token, TOKENS)
    if COSINE:
        tl.store(scale_grad + place, tl.sum(scale_sum, 0))


@triton.jit
def attention_backward_queries(
    qkv, bias, logit_scale, normalizer, out_grad, slopes_level, qkv_grad, scale_grad,
    windows, groups,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, TILE: tl.constexpr, TILES: tl.constexpr,
    BLOCK_D: tl.constexpr, COSINE: tl.constexpr, SCALE: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid [A·tiles, groups]: gradients of one tile of queries, of windows of several.

    ``slopes_level``, fp32 [B·N, A, K], takes the rows' means for the programs of keys and bias;
    ``scale_grad``, fp32 [groups, A, tiles], is written if COSINE.
    """
    TOKENS: tl.constexpr = WINDOW * WINDOW
    C: tl.constexpr = HEADS * D
    head, tile = tl.program_id(0) // TILES, tl.program_id(0) % TILES
    query = tile * TILE + tl.arange(0, TILE)
    length = tl.load(logit_scale + head) if COSINE else 1.0
    scale_sum = tl.zeros([TILE], tl.float32)
    for number in range(tl.program_id(1), windows, groups):
        rows, region = locate(number, query, HEIGHT, WIDTH, WINDOW, SHIFT)
        queries, unit, inverse, grad, of_row = load_queries(
            qkv, normalizer, out_grad, number, head, query, rows, length,
            HEADS, D, TOKENS, BLOCK_D, COSINE,
        )  # fmt: skip
        level = sum_slopes(
            qkv, bias, slopes_level, queries, grad, of_row, number, head, query, region,
            HEIGHT, WIDTH, HEADS, D, WINDOW, SHIFT, TILE, TILES, BLOCK_D, COSINE, SCALE,
            MASKED, PRECISION,
        )  # fmt: skip
        queries_grad = tl.zeros([TILE, BLOCK_D], tl.float32)
        for other in range(0, TILES):
            key = other * TILE + tl.arange(0, TILE)
            key_rows, key_region = locate(number, key, HEIGHT, WIDTH, WINDOW, SHIFT)
            keys, _, _, values = load_keys(
                qkv, head, key, key_rows, HEADS, D, TOKENS, BLOCK_D, COSINE
            )
            weights, weights_grad = weights_and_grads(
                queries, keys, values, grad, of_row, load_bias(bias, head, query, key, TOKENS),
                region, key_region, SCALE, MASKED, SHIFT, PRECISION,
            )  # fmt: skip
            slopes = weights * (weights_grad - level[:, None])
            queries_grad += product(slopes.to(keys.dtype), keys, PRECISION)
        queries_grad *= SCALE
        if COSINE:
            scale_sum += tl.sum(queries_grad * unit, 1)
            queries_grad = through_length(queries_grad * length, unit, inverse)
        store_vectors(queries_grad, qkv_grad + head * D, rows, 3 * C, query < TOKENS, D, BLOCK_D)
    if COSINE:
        place = (tl.program_id(1) * HEADS + head) * TILES + tile
        tl.store(scale_grad + place, tl.sum(scale_sum, 0))


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
        rows, region = locate(number, key, HEIGHT, WIDTH, WINDOW, SHIFT)
        keys, unit, inverse, values = load_keys(
            qkv, head, key, rows, HEADS, D, TOKENS, BLOCK_D, COSINE
        )
        keys_grad = tl.zeros([TILE, BLOCK_D], tl.float32)
        values_grad = tl.zeros([TILE, BLOCK_D], tl.float32)
        for other in range(0, TILES):
            query = other * TILE + tl.arange(0, TILE)
            query_rows, query_region = locate(number, query, HEIGHT, WIDTH, WINDOW, SHIFT)
            queries, _, _, grad, of_row = load_queries(
                qkv, normalizer, out_grad, number, head, query, query_rows, length,
                HEADS, D, TOKENS, BLOCK_D, COSINE,
            )  # fmt: skip
            bias_tile = load_bias(bias, head, query, key, TOKENS)
            weights, weights_grad = weights_and_grads(
                queries, keys, values, grad, of_row, bias_tile, query_region, region,
                SCALE, MASKED, SHIFT, PRECISION,
            )  # fmt: skip
            place = slopes_level + (number * HEADS + head) * TOKENS + query
            level = tl.load(place, mask=query < TOKENS, other=0.0)
            slopes = weights * (weights_grad - level[:, None])
            weights, slopes = weights.to(grad.dtype), slopes.to(queries.dtype)
            values_grad += product(tl.trans(weights), grad, PRECISION)
            keys_grad += product(tl.trans(slopes), queries, PRECISION)
        keys_grad *= SCALE
        if COSINE:
            keys_grad = through_length(keys_grad, unit, inverse)
        start = qkv_grad + head * D
        store_vectors(keys_grad, start + C, rows, 3 * C, key < TOKENS, D, BLOCK_D)
        store_vectors(values_grad, start + 2 * C, rows, 3 * C, key < TOKENS, D, BLOCK_D)


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
    bias_tile = load_bias(bias, head, query, key, TOKENS)
    bias_sum = tl.zeros([TILE, TILE], tl.float32)
    for number in range(tl.program_id(1), windows, groups):
        rows, region = locate(number, query, HEIGHT, WIDTH, WINDOW, SHIFT)
        key_rows, key_region = locate(number, key, HEIGHT, WIDTH, WINDOW, SHIFT)
        queries, _, _, grad, of_row = load_queries(
            qkv, normalizer, out_grad, number, head, query, rows, length,
            HEADS, D, TOKENS, BLOCK_D, COSINE,
        )  # fmt: skip
        keys, _, _, values = load_keys(qkv, head, key, key_rows, HEADS, D, TOKENS, BLOCK_D, COSINE)
        weights, weights_grad = weights_and_grads(
            queries, keys, values, grad, of_row, bias_tile, region, key_region,
            SCALE, MASKED, SHIFT, PRECISION,
        )  # fmt: skip
        place = slopes_level + (number * HEADS + head) * TOKENS + query
        level = tl.load(place, mask=query < TOKENS, other=0.0)
        slopes = weights * (weights_grad - level[:, None])
        bias_sum += slopes
    place = tl.program_id(1) * HEADS + head
    store_bias_grad(bias_sum, bias_grad, place, query, key, TOKENS)
