"""The texts on which latents are strongest, with their activations at every model's tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from sparsify_crosscoder.crosscoders import SparseCode
from sparsify_crosscoder.text.roles import who_said

from ..delphi.crosscoder_cache import CrosscoderLatentCache
from .data import Context

AROUND = (24, 12)  # tokens before and after the strongest one


def passages(cache: CrosscoderLatentCache, latents: Iterable[int]) -> dict[int, list[Context]]:
    """The contexts of latents that the cache noted, the strongest first.

    Every window of text is read and encoded once, whatever the number of latents that fire in it.
    """
    statistics, text = cache.statistics, cache.text
    wanted: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    found: dict[int, list[Context]] = {latent: [] for latent in latents}
    for latent in found:
        for place, (window, pair) in enumerate(statistics.context_pairs[latent].tolist()):
            if window >= 0:
                wanted[window].append((latent, place, pair))
    placed: dict[int, dict[int, Context]] = defaultdict(dict)
    pieces: list[dict[int, str]] = [{} for _ in text.tokenizers]
    everything = sorted(wanted.items())
    for window, places in tqdm(everything, desc="Reading texts", unit="window", delay=1):
        code = cache._encode(text.read(window, window + 1))
        row = text.windows[window]
        for latent, place, pair in places:
            strengths = _of_latent(code, latent)
            placed[latent][place] = _context(row, text.tokenizers, pieces, strengths, pair)
    return {latent: [placed[latent][i] for i in sorted(placed[latent])] for latent in found}


def _of_latent(code: SparseCode, latent: int) -> list[float]:
    """A latent's activation at every pair of a window."""
    mine = code.indices == latent
    acts = torch.zeros(code.shape[0], device=code.acts.device)
    acts[code.rows[mine]] = code.acts[mine].float()
    return acts.tolist()


def _context(
    row: dict[str, Any],
    tokenizers: Sequence[Any],
    pieces: Sequence[dict[int, str]],
    strengths: Sequence[float],
    peak: int,
) -> Context:
    """A passage, once where all models read the same tokens.

    `pieces` are the texts of tokens that were decoded already, of each source.
    """
    tokens, activations = [], []
    for source, tokenizer in enumerate(tokenizers):
        ids, pairs = row[f"input_ids_{source}"], row[f"pairs_{source}"]
        first = max(pairs[peak] - AROUND[0], 0)
        shown = ids[first : pairs[peak] + AROUND[1] + 1]
        of_tokens = [0.0] * len(ids)
        for position, strength in zip(pairs, strengths, strict=True):
            of_tokens[position] = strength
        known = pieces[source]
        if new := [token for token in dict.fromkeys(shown) if token not in known]:
            texts = tokenizer.batch_decode([[token] for token in new])
            known.update(zip(new, texts, strict=True))
        tokens.append([known[token] for token in shown])
        activations.append(of_tokens[first : first + len(shown)])
    if all(one == tokens[0] for one in tokens) and all(
        one == activations[0] for one in activations
    ):
        tokens, activations = tokens[:1], activations[:1]
    return Context(strengths[peak], int(row["text_id"]), tokens, activations, who_said(row, peak))
