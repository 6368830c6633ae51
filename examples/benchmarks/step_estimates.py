"""What a step should cost, by counting: operations, bytes moved and peak memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from step_settings import Setting

from sparsify_crosscoder import Crosscoder

PIECE_BYTES = 4 * 2**20
"""Of the encoder's product, unless dead latents are looked for in it."""

HEAP_BYTES = 32 * 10**6
"""Freed memory that glibc keeps by default: anything up to 64 MiB, so half of it."""


class Work(NamedTuple):
    """What a stage cannot do without: floating-point operations, and bytes each moved once."""

    flops: int
    bytes: int
    bf16: bool = False
    """Whether the operations may be those of the bfloat16 product."""


def count_work(
    crosscoder: Crosscoder, setting: Setting, screen_dtype: torch.dtype | None
) -> dict[str, Work]:
    """Work of each stage of our step, by its name in the table of stages.

    A row of a matrix that is gathered several times counts as moved once.
    """
    n, size = setting.batch, 4
    weights = sum(w.numel() for w in crosscoder.encoder.weights)
    width = weights // crosscoder.num_latents
    entries = sum(crosscoder.budgets(n))
    screen = n * crosscoder.num_latents * (screen_dtype or torch.float32).itemsize
    inputs = n * crosscoder.d_in * size
    rows = min(entries, crosscoder.num_latents) * width * size
    work = {
        "normalise": Work(2 * n * crosscoder.d_in, 2 * inputs),
        "encoder": Work(2 * n * weights, weights * size + inputs + screen, bool(screen_dtype)),
        "select": Work(2 * weights, weights * size + screen),
        "decode": Work(2 * entries * width, rows + inputs),
        "backward": Work(6 * entries * width, rows + 2 * inputs + 2 * weights * size),
        "clip": Work(4 * weights, 6 * weights * size),
        "optimiser": Work(24 * weights, 14 * weights * size),
    }
    if screen_dtype:
        work["re-score"] = Work(2 * entries * width, rows + inputs)
    if setting.auxk:
        dead = crosscoder.num_latents // 2
        aux = n * min(round(crosscoder.d_in / len(setting.widths)) // 2, dead) * width
        buffer = n * dead * (screen_dtype or torch.float32).itemsize
        work["AuxK"] = Work(4 * aux, buffer + dead * width * size + inputs)
        backward = work["backward"]
        work["backward"] = Work(backward.flops + 6 * aux, backward.bytes + dead * width * size)
    return work


def dense_flops(setting: Setting) -> int:
    """Floating-point operations of the dense step's matrix products."""
    product = 2 * setting.batch * setting.num_latents * sum(setting.widths)
    # Encoding, decoding, gradients of the encoder, of the decoder and of the codes.
    return product * (8 if setting.auxk else 5)


def shares(work: Sequence[Work], ms: float, limits: Mapping[str, float]) -> dict[str, float]:
    """What is counted, the shares of the machine's ceilings reached, and the least milliseconds."""
    gemm = {True: limits["gemm_bf16_flops"], False: limits["gemm_fp32_flops"]}
    flop_ms = [1e3 * one.flops / gemm[one.bf16] for one in work]
    byte_ms = [1e3 * one.bytes / limits["memory_bytes"] for one in work]
    return {
        "gflop": sum(one.flops for one in work) / 1e9,
        "gbyte": sum(one.bytes for one in work) / 1e9,
        "gemm_share": sum(flop_ms) / ms,
        "bandwidth_share": sum(byte_ms) / ms,
        "floor_ms": sum(map(max, flop_ms, byte_ms)),
    }


def expected_bytes(
    setting: Setting, screen_dtype: torch.dtype | None = None, matrix_elements: int | None = None
) -> dict[str, int]:
    """Memory that our step needs in float32 on a CPU, by part, and its `peak`; see memory.md.

    `matrix_elements` are the encoder's weights, M times the joint width unless latents lack some.
    """
    n, m, d_in, size = setting.batch, setting.num_latents, sum(setting.widths), 4
    matrix = m * d_in if matrix_elements is None else matrix_elements
    parameters = size * (2 * matrix + m + d_in)
    entries, dead = n * setting.k, 0
    if setting.auxk:
        dead = m // 2
        entries += n * min(round(d_in / len(setting.widths)) // 2, dead)
    itemsize = (screen_dtype or torch.float32).itemsize
    screening = n * m * itemsize
    parts = {
        "parameters": parameters,
        "gradients": parameters,
        "adam": 2 * parameters,
        "inputs": 2 * n * d_in * size,
        "screening": screening if setting.auxk else min(screening, PIECE_BYTES),
        "screening_weights": matrix * screen_dtype.itemsize if screen_dtype else 0,
        "dead": n * dead * (itemsize + 3),
        "entries": 64 * entries,
        "errors": (4 if setting.auxk else 2) * n * d_in * size,
    }
    always = parts["parameters"] + parts["adam"] + parts["inputs"] + parts["entries"]
    selecting = parts["screening"] + max(parts["screening_weights"], parts["dead"])
    updating = parts["gradients"] + parts["errors"]
    return {**parts, "heap": HEAP_BYTES, "peak": always + max(selecting, updating) + HEAP_BYTES}
