"""Text that a run did not train on, which is checked against all that it did train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor

from ..harvest.source import Source
from ..records import read_json
from ..runs.run import Run
from ..runs.texts import (
    HELD_OUT_SEED,
    align_texts,
    load_run_texts,
    load_windows,
    split_run_windows,
    text_options,
)
from ..store.order import split_windows
from ..text.overlap import SPAN, contents, overlap
from ..text.window_numbers import window_numbers


class _Alignment(TypedDict):
    texts: int
    pairs: int
    tokens: list[int]


class _Data(TypedDict):
    alignment: _Alignment


class _Summary(TypedDict):
    data: _Data


class TooLittleText(ValueError):
    """Less text is left that a run did not train on than is needed."""

    def __init__(self, found: str):
        super().__init__(
            f"{found} Name other text with --dataset, or lower --pairs or --held_out_pairs."
        )
        self.found = found
        """How much was looked at and left, in words."""


@dataclass
class UnseenText:
    """Aligned windows of text that a run did not train on."""

    windows: Dataset
    fitted: Tensor
    """Rows of the windows to fit to."""

    held_out: Tensor
    """Rows of the windows to judge by, of whole texts that share no passage with the fitted ones.
    """

    facts: dict[str, Any]
    """Where the text is from, its fingerprint, and what was left out."""


def unseen_text(
    run: Run,
    sources: list[Source],
    *,
    pairs: int,
    least_pairs: int,
    held_out_pairs: int,
    dataset: Dataset | None = None,
) -> UnseenText:
    """Text to fit `pairs` pairs to, at most, and `held_out_pairs` or a few more to judge by.

    It is taken from `dataset`, or from the run's own: the texts that the run held out, and those
    behind its `--max_examples`. Texts that share a passage of `SPAN` characters with one that the
    run trained on are left out. Raises TooLittleText if fewer than `least_pairs` pairs are left to
    fit, ValueError if the run's dataset is no longer the one that it was trained on.
    """
    trained, own, pairs_per_text = _texts_of_run(run, sources)
    candidates = own if dataset is None else dataset
    wanted = pairs + held_out_pairs
    count = int(2 * wanted / pairs_per_text) + 1
    while True:
        count = min(count, len(candidates))
        texts = candidates.select(range(count))
        found = overlap(texts, trained)
        texts = texts.select(np.flatnonzero(~found.any))
        windows = align_texts(run.config, texts, sources) if len(texts) else None
        total = 0 if windows is None else int(window_numbers(windows, "num_pairs").sum())
        if total >= wanted or count == len(candidates):
            break
        count *= 2

    left_out = {
        "trained_on": int(found.whole.sum()),
        "partly_trained_on": int((found.any & ~found.whole).sum()),
    }
    near, num_fitted = 0, 0
    fitted = held_out = torch.empty(0, dtype=torch.int64)
    if windows is not None and total >= least_pairs + held_out_pairs:
        fitted, held_out = split_windows(windows, held_out_pairs, HELD_OUT_SEED)
        fitted, near = _apart(texts, windows, fitted, held_out)
        counts = torch.from_numpy(window_numbers(windows, "num_pairs"))[fitted]
        fitted = fitted[counts.cumsum(0) - counts < pairs]
        num_fitted = int(counts.sum())
    if windows is None or num_fitted < least_pairs:
        raise TooLittleText(
            f"Of {count:,} texts the run trained on {left_out['trained_on']:,}, and "
            f"{left_out['partly_trained_on']:,} share a passage with one that it trained on. The "
            f"others give {total:,} pairs, of which {num_fitted:,} can be fitted ({near:,} texts "
            f"are like those held out); {least_pairs:,} to fit and {held_out_pairs:,} held out "
            "are needed."
        )
    rows = {"fitted": _text_ids(windows, fitted), "held_out": _text_ids(windows, held_out)}
    facts = {
        "fingerprint": _fingerprint(texts, np.concatenate([*rows.values()])),
        "looked_at": count,
        **left_out,
        "like_held_out": near,
        **{f"texts_{name}": len(ids) for name, ids in rows.items()},
        "trained_on_texts": len(trained),
        "passage": SPAN,
    }
    return UnseenText(windows, fitted, held_out, facts)


def _texts_of_run(run: Run, sources: list[Source]) -> tuple[Dataset, Dataset, float]:
    """What the run trained on, what else its dataset has, and the mean number of pairs in a text.

    Raises ValueError if the dataset does not give the pairs that the run reported.
    """
    config = text_options(run.config)
    before = _reported(run.path)
    texts = load_run_texts(config)
    windows, report = load_windows(config, sources)
    _check_unchanged(run.path, config.dataset, before, report["alignment"])
    train, held_out = split_run_windows(config, windows)
    read = report["alignment"]["texts"]
    behind = texts.select([*range(read, len(texts))])
    if config.max_examples is not None:
        more = load_run_texts(replace(config, max_examples=None))
        behind = more.select(range(len(texts), len(more)))
    others = concatenate_datasets([texts.select(_text_ids(windows, held_out)), behind])
    mean = int(window_numbers(windows, "num_pairs").sum()) / len(texts)
    return texts.select(_text_ids(windows, train)), others, mean


def _reported(run: Path) -> dict[str, Any]:
    """What a finished run says of its texts; raises ValueError for one that is not finished."""
    file = run / "summary.json"
    if not file.exists():
        raise ValueError(
            f"'{run}' has no summary.json, so what it was trained on cannot be checked; let the "
            f"run finish (--resume)."
        )
    remedy = "Restore it, or delete it and let the run finish again (--resume)."
    return read_json(file, _Summary, remedy)["data"]["alignment"]


def _check_unchanged(run: Path, dataset: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise ValueError where the texts of a run without a record of them have other counts now."""
    for name in ("texts", "pairs", "tokens"):
        if before[name] != now[name]:
            raise ValueError(
                f"The texts of '{dataset}' are not those that '{run}' was trained on ({name}: "
                f"{before[name]} then, {now[name]} now), so it cannot be told what the "
                f"run has seen. Restore the dataset and the tokenizers as they were."
            )


def _apart(
    texts: Dataset, windows: Dataset, fitted: Tensor, held_out: Tensor
) -> tuple[Tensor, int]:
    """The rows to fit, without texts that share a passage with held-out ones, and how many these
    are."""
    ids = _text_ids(windows, fitted)
    near = overlap(texts.select(ids), texts.select(_text_ids(windows, held_out))).any
    of_row = window_numbers(windows, "text_id")[fitted.numpy()]
    return fitted[torch.from_numpy(~np.isin(of_row, ids[near]))], int(near.sum())


def _text_ids(windows: Dataset, rows: Tensor) -> np.ndarray:
    """The texts of some windows, ascending."""
    return np.unique(window_numbers(windows, "text_id")[rows.numpy()])


def _fingerprint(texts: Dataset, rows: Sequence[int] | np.ndarray) -> str:
    """SHA-256 of the texts that are used, without case and white space."""
    digest = sha256()
    for text in contents(texts.select(rows)):
        digest.update(text.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
