"""Columns that say of each pair how the models' next-token distributions differ there, in nats.

    kl_s_0, kl_0_s   of each source s > 0 that shares source 0's vocabulary: KL(s || 0) and
                     KL(0 || s) between the distributions of the token after the pair
    loglik_s         of each source s: the log-likelihood of its tokens behind the pair, up to and
                     with that of the window's next pair; 0 for the last pair of a window

All are computed from last hidden states that forwards left, some positions at a time: logits of
more of them never exist together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .batching import Batch
from .heads import Head, share_vocabulary
from .placement import input_device
from .source import Source

_POSITIONS_AT_ONCE, _LOGITS_AT_ONCE = 256, 2**24

Watch = Callable[[Tensor, int, Tensor, Tensor], None]
"""Is shown the numbers of some pairs [n], a source, and the log-probabilities [n, vocabulary] of
the token behind them by source 0 and by that source, of whatever vocabularies."""


def divergence_columns(sources: Sequence[Source]) -> tuple[str, ...]:
    """The columns that a harvest of these sources gives: none unless all of them have heads."""
    if not sources or any(source.head is None for source in sources):
        return ()
    compared = _compared(sources)
    kl = [name for s in compared for name in (f"kl_{s}_0", f"kl_0_{s}")]
    return (*kl, *(f"loglik_{s}" for s in range(len(sources))))


class LastStates(NamedTuple):
    """A model's last hidden states at every token of some windows, filled by its forwards."""

    states: Tensor
    """[tokens, width], the windows one after the other."""

    first: Tensor
    """[windows] where in `states` each window begins."""

    @classmethod
    def empty(cls, source: Source, lengths: np.ndarray) -> LastStates:
        """For windows of so many tokens `lengths` [windows]."""
        assert source.head is not None
        size = (int(lengths.sum()), source.head.width)
        states = torch.zeros(size, dtype=source.model.dtype, device=input_device(source.model))
        return cls(states, torch.from_numpy(np.cumsum(lengths) - lengths))

    def put(self, batch: Batch, hidden: Tensor) -> None:
        """Keep the states [windows, tokens, width] of a batch."""
        read = batch.attention_mask.bool()
        places = self.first[batch.numbers][:, None] + torch.arange(read.shape[1])
        rows = hidden[read.to(hidden.device)].to(self.states)
        self.states[places[read].to(self.states.device)] = rows


class _Tokens(NamedTuple):
    """The tokens of one source's windows, and which pair's text they are."""

    pairs: Tensor
    """[P] row of each pair in the states."""

    following: Tensor
    """[T] id of the token behind each, in its window."""

    owner: np.ndarray
    """[T] the pair to whose text the token behind each belongs, -1 for none."""


@torch.inference_mode()
def next_token_columns(
    sources: Sequence[Source],
    texts: dict[str, Any],
    counts: np.ndarray,
    last: Sequence[LastStates],
    watch: Watch | None = None,
) -> dict[str, Tensor]:
    """The columns of `divergence_columns`, [P] float32 each on the CPU, for P pairs of windows.

    `texts` are columns of windows, `counts` [windows] their pairs, `last` the states per source;
    `watch` sees the probabilities that they are made of.
    Raises ValueError where one is NaN or infinite.
    """
    num_pairs, compared = int(counts.sum()), _compared(sources)
    heads = [_head(source) for source in sources]
    tokens = [_tokens_of(texts, counts, s) for s in range(len(sources))]
    likelihoods = [np.zeros(len(one.following)) for one in tokens]
    columns = {
        name: torch.zeros(num_pairs) for s in compared for name in (f"kl_{s}_0", f"kl_0_{s}")
    }

    def log_probabilities(s: int, rows: Tensor) -> Tensor:
        """[n, vocabulary] at `rows`; notes that of the tokens that follow."""
        logits = heads[s](last[s].states[rows.to(last[s].states.device)])
        found = logits.log_softmax(-1)
        following = tokens[s].following[rows].to(found.device)
        likelihoods[s][rows.numpy()] = found.gather(1, following[:, None])[:, 0].cpu().numpy()
        return found

    at_once = _LOGITS_AT_ONCE // max(head.num_tokens for head in heads)
    at_once = min(max(at_once, 1), _POSITIONS_AT_ONCE)
    for pairs in torch.arange(num_pairs).split(at_once):
        first = log_probabilities(0, tokens[0].pairs[pairs])
        for s in range(1, len(sources)):
            other = log_probabilities(s, tokens[s].pairs[pairs])
            if s in compared:
                there, back = divergences(other.to(first.device), first)
                columns[f"kl_{s}_0"][pairs], columns[f"kl_0_{s}"][pairs] = there, back
            if watch is not None:
                watch(pairs, s, first, other.to(first.device))
            del other  # before the next one's logits
    for s, one in enumerate(tokens):
        between = one.owner >= 0
        between[one.pairs.numpy()] = False
        for rows in torch.from_numpy(np.flatnonzero(between)).split(at_once):
            log_probabilities(s, rows)
        owned = one.owner >= 0
        sums = np.bincount(one.owner[owned], likelihoods[s][owned], minlength=num_pairs)
        columns[f"loglik_{s}"] = torch.from_numpy(sums).float()
    _check_finite(sources, columns)
    return columns


def divergences(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """KL(one || other) and KL(other || one) [n] of log-probabilities [n, vocabulary]."""
    difference = one - other
    there = torch.linalg.vecdot(one.exp(), difference)
    back = torch.linalg.vecdot(other.exp(), -difference)
    return there.clamp(min=0).cpu(), back.clamp(min=0).cpu()


def _compared(sources: Sequence[Source]) -> list[int]:
    """The sources that share the first one's vocabulary."""
    first = sources[0]
    return [
        s
        for s, source in enumerate(sources[1:], 1)
        if _head(source).num_tokens == _head(first).num_tokens
        and share_vocabulary([first.tokenizer, source.tokenizer])
    ]


def _head(source: Source) -> Head:
    assert source.head is not None
    return source.head


def _tokens_of(texts: dict[str, Any], counts: np.ndarray, source: int) -> _Tokens:
    chosen = np.flatnonzero(counts)
    ids = [np.asarray(texts[f"input_ids_{source}"][i], dtype=np.int64) for i in chosen]
    lengths = np.array([len(window) for window in ids])
    first = np.cumsum(lengths) - lengths
    pairs = np.concatenate(
        [
            start + np.asarray(texts[f"pairs_{source}"][i])
            for start, i in zip(first, chosen, strict=True)
        ]
    )
    following = np.roll(np.concatenate(ids), -1)
    owner = np.searchsorted(pairs, np.arange(len(following)), side="right") - 1
    window_of_pair = np.repeat(np.arange(len(chosen)), counts[chosen])
    is_last = np.append(window_of_pair[1:] != window_of_pair[:-1], True)
    owner[is_last[owner]] = -1  # also what is before the first pair: of -1, the last of all
    return _Tokens(torch.from_numpy(pairs), torch.from_numpy(following), owner)


def _check_finite(sources: Sequence[Source], columns: dict[str, Tensor]) -> None:
    bad = [name for name, values in columns.items() if not bool(values.isfinite().all())]
    if bad:
        models = " and ".join(f"{source.name} ({source.model.dtype})" for source in sources)
        raise ValueError(
            f"The next-token probabilities of {models} give NaN or infinity ({', '.join(bad)}). A "
            "dtype is the usual cause: try --model_dtype float32, or leave this out with --kl off."
        )
