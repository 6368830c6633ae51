"""Near-identical explanations of latents exclusive to different sources (Tables 11 and 17).

Two latents that are explained alike, one exclusive to each source, may be one concept that both
models have. Pairs are found by the explanations' embeddings and confirmed by whether the latents
are active together.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from safetensors import safe_open

from sparsify_crosscoder.evaluation.clusters import SAME
from sparsify_crosscoder.records import reading

from .flagging import MISSING, UNPARSED

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Method = Literal["auto", "tfidf", "sentence-transformers"]

MODEL = "sentence-transformers/all-MiniLM-L6-v2"

# Chosen by hand on some dozens of explanations that say one thing in two ways, against ones on
# other topics. Most pairs of Tables 11 and 17 share a subject and hardly a word: they are below
# both, and above 0.5 with sentence-transformers, where other kindred explanations are as well.
THRESHOLDS = {"sentence-transformers": 0.65, "tfidf": 0.2}
"""Least similarity of a pair, for each method."""

BLOCK = 512
"""Rows of the similarity matrix that are held at a time."""

ENTRIES = 1 << 22
"""Entries of a latent cache that are read at a time."""


@dataclass(frozen=True)
class SimilarPair:
    """A latent of each of two sources, and how alike they are."""

    latents: tuple[int, int]
    explanations: tuple[str, str]
    similarity: float
    """Cosine of the explanations' embeddings, rounded to 6 digits."""

    method: str
    """How they were embedded, a key of `THRESHOLDS`; similarities of two methods do not compare."""

    correlation: float | None = None
    """Of the latents' activations; None before `confirm`."""

    confirmed: bool | None = None
    """Whether that makes them the same; None before `confirm`."""


def embed(texts: Sequence[str], model: str = MODEL, method: Method = "auto") -> tuple[Any, str]:
    """Embeddings `[n, d]` of texts, rows of length 1, and the method that made them.

    "sentence-transformers" is a dense array from `model`, a name or a folder, which has to be on
    this machine already: nothing is downloaded. "tfidf" is a sparse matrix of the texts' words and
    pairs of words, in which a text without any is a row of zeros; words count by how rare they are
    among these texts, so that among few a turn of phrase weighs as much as a topic. "auto" takes
    the first where the package and the model are there, and otherwise the second with a warning.

    Raises ImportError where the method's package is missing and OSError where its model is.
    """
    if method not in ("auto", *THRESHOLDS):
        raise ValueError(f"method is one of {['auto', *THRESHOLDS]}, not {method!r}.")
    if method != "tfidf":
        try:
            encoder = _sentence_transformer(model)
        except Exception as error:  # of packages that may be broken in many ways
            if method != "auto":
                raise
            logging.getLogger(__name__).warning(
                "Explanations are compared by their words (TF-IDF), not by their meaning: %s", error
            )
        else:
            rows = encoder.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
            return np.asarray(rows), "sentence-transformers"
    return _tfidf(texts), "tfidf"


def similar_pairs(
    first: Mapping[int, str],
    second: Mapping[int, str],
    *,
    threshold: float | None = None,
    method: Method = "auto",
    model: str = MODEL,
) -> list[SimilarPair]:
    """Pairs of latents of two sources whose explanations are alike, the most similar first.

    `first` and `second` are explanations by latent. A latent may be in several pairs. Blank ones
    and delphi's words for a missing explanation are left out. `threshold` is the least cosine, that
    of `THRESHOLDS` by default; `model` and `method` are those of `embed`. Raises ValueError unless
    the threshold is above 0 and at most 1, and what `embed` raises.
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, got {threshold}.")
    sides = [_explained(first), _explained(second)]
    if not all(sides):
        return []
    rows, method_used = embed([text for side in sides for text in side.values()], model, method)
    least = THRESHOLDS[method_used] if threshold is None else threshold
    ours, theirs = (list(side.items()) for side in sides)
    found = [
        SimilarPair((ours[i][0], theirs[j][0]), (ours[i][1], theirs[j][1]), similarity, method_used)
        for i, j, similarity in _alike(rows[: len(ours)], rows[len(ours) :], least)
    ]
    return sorted(found, key=lambda pair: (-pair.similarity, pair.latents))


def confirm(
    pairs: Sequence[SimilarPair],
    correlations: Mapping[tuple[int, int], float],
    threshold: float = SAME,
) -> list[SimilarPair]:
    """The pairs with their correlations, confirmed where these reach `threshold`.

    Raises ValueError where a pair has no correlation.
    """
    missing = [pair.latents for pair in pairs if pair.latents not in correlations]
    if missing:
        raise ValueError(
            f"There are no correlations of {missing[:5]}: give activation_correlations all pairs."
        )
    return [
        replace(
            pair,
            correlation=correlations[pair.latents],
            confirmed=bool(correlations[pair.latents] >= threshold),
        )
        for pair in pairs
    ]


def activation_correlations(
    folder: str | Path, hookpoint: str, pairs: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], float]:
    """Pearson correlations of pairs of latents over all tokens of a delphi latent cache.

    The cache is `<folder>/<hookpoint>`. A token on which a latent is silent counts as 0, also where
    the cache could have no activation, such as a token that no pair of tokens ends at. A latent
    that never fires, or is the same on every token, has no correlation; it is given as 0.0.

    Each file is read once, and of it the latents asked for are held. Raises ValueError where a
    latent is in no file, and for files that are not of one cache.
    """
    if not pairs:
        return {}
    latents = np.unique(np.array([list(pair) for pair in pairs], dtype=np.int64))
    acts, num_tokens = _activations(Path(folder) / hookpoint, latents)
    owners = np.repeat(np.arange(len(latents)), np.diff(acts.indptr))
    values = acts.data.astype(np.float64)
    sums = np.bincount(owners, values, minlength=len(latents))
    squares = np.bincount(owners, values**2, minlength=len(latents))
    spread = squares - sums**2 / num_tokens
    spread[spread <= 1e-12 * squares] = 0.0  # what rounding leaves of a constant

    result = {}
    for pair in pairs:
        i, j = np.searchsorted(latents, pair)
        result[pair] = 0.0
        if spread[i] and spread[j]:
            # A product of two float16 is exact in float32.
            together = acts[[i]].multiply(acts[[j]]).sum(dtype=np.float64)
            shared = together - sums[i] * sums[j] / num_tokens
            result[pair] = float(np.clip(shared / np.sqrt(spread[i] * spread[j]), -1.0, 1.0))
    return result


def markdown(pairs: Sequence[SimilarPair], names: tuple[str, str]) -> str:
    """A table of pairs in the form of Table 11; `names` are those of the two sources."""
    lines = [
        f"| {_cell(names[0])}-exclusive latent | {_cell(names[1])}-exclusive latent "
        "| Similarity | Correlation | Confirmed |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    for pair in pairs:
        sides = zip(pair.latents, pair.explanations, strict=True)
        cells = [f"{latent}: {_cell(text)}" for latent, text in sides]
        cells.append(f"{pair.similarity:.2f}")
        cells.append("" if pair.correlation is None else f"{pair.correlation:.2f}")
        cells.append("" if pair.confirmed is None else "yes" if pair.confirmed else "no")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _explained(explanations: Mapping[int, str]) -> dict[int, str]:
    return {
        int(latent): text
        for latent, text in explanations.items()
        if text.strip() and text not in (UNPARSED, MISSING)
    }


def _sentence_transformer(model: str) -> Any:
    try:
        from sentence_transformers import (  # pyright: ignore[reportMissingImports]
            SentenceTransformer,
        )
    except ImportError as error:
        raise ImportError(
            f"sentence-transformers cannot be imported ({error}): `pip install "
            'sentence-transformers`, or compare words with method="tfidf".'
        ) from error
    try:
        # A machine without a network would otherwise try for minutes.
        return SentenceTransformer(model, local_files_only=True)
    except OSError as error:
        raise OSError(
            f"The model {model} is not on this machine: download it once with `hf download "
            f'{model}`, or compare words with method="tfidf".'
        ) from error


def _tfidf(texts: Sequence[str]) -> Any:
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise ImportError(
            "Comparing explanations needs sentence-transformers, or scikit-learn: `pip install "
            "scikit-learn`."
        ) from error
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), stop_words="english", sublinear_tf=True)
    analyze = vectorizer.build_analyzer()
    if not any(analyze(text) for text in texts):
        from scipy.sparse import csr_array

        return csr_array((len(texts), 1))  # scikit-learn refuses to fit no words at all
    return vectorizer.fit_transform(texts)


def _alike(first: Any, second: Any, threshold: float) -> Iterator[tuple[int, int, float]]:
    """Rows of two embeddings and their cosine, where it reaches the threshold."""
    for start in range(0, first.shape[0], BLOCK):
        block = first[start : start + BLOCK] @ second.T
        if isinstance(block, np.ndarray):
            i, j = np.nonzero(block >= threshold - 1e-6)
            cosines = block[i, j]
        else:
            entries = block.tocoo()
            i, j, cosines = entries.row, entries.col, entries.data
        cosines = np.minimum(cosines.astype(np.float64), 1.0).round(6)
        kept = cosines >= threshold
        for a, b, cosine in zip(i[kept], j[kept], cosines[kept], strict=True):
            yield start + int(a), int(b), float(cosine)


def _activations(folder: Path, latents: np.ndarray) -> tuple[csr_array, int]:
    """Activations `[len(latents), T]` of sorted latents, from the files of a cache, and T."""
    from scipy.sparse import csr_array

    missing = np.ones(len(latents), dtype=bool)
    nothing = np.empty(0, dtype=np.int64)
    parts: list[tuple[np.ndarray, ...]] = [(nothing, nothing, nothing.astype(np.float32))]
    size = None
    for path in sorted(folder.glob("*.safetensors")):
        name = re.fullmatch(r"(\d+)_(\d+)", path.stem)
        if not name:
            continue
        start, end = int(name[1]), int(name[2])
        inside = (latents >= start) & (latents <= end)
        if not inside.any():
            continue
        missing &= ~inside
        numbers = np.full(end - start + 1, -1)
        numbers[latents[inside] - start] = np.flatnonzero(inside)
        remedy = f"Delete the folder '{folder}', and the cache is made anew."
        with reading(path, remedy), safe_open(path, "np") as file:
            if "tokens" not in file.keys():  # noqa: SIM118
                raise ValueError(f"{path} has no tokens, so that their number is unknown.")
            shape = file.get_slice("tokens").get_shape()
            if size not in (None, shape):
                raise ValueError(f"{path} has tokens {shape}, and other files {size}.")
            size = shape
            parts += _entries(file, numbers, shape[1])
    if missing.any():
        raise ValueError(f"Latents {latents[missing][:10].tolist()} are in no file of '{folder}'.")
    assert size is not None  # each latent was in a file
    owners, places, acts = (np.concatenate(x) for x in zip(*parts, strict=True))
    if not np.isfinite(acts).all():
        raise ValueError(f"Activations in '{folder}' are not finite: float16 cannot hold them.")
    num_tokens = size[0] * size[1]
    return csr_array((acts, (owners, places)), shape=(len(latents), num_tokens)), num_tokens


def _entries(file: Any, numbers: np.ndarray, ctx_len: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Row of the result, place in the text and activation, of the file's latents with a number."""
    locations, activations = file.get_slice("locations"), file.get_slice("activations")
    num_entries = locations.get_shape()[0]
    for start in range(0, num_entries, ENTRIES):
        stop = min(start + ENTRIES, num_entries)
        where = locations[start:stop].astype(np.int64)
        owners = numbers[where[:, 2]]
        asked = owners >= 0
        acts = activations[start:stop][asked].astype(np.float32)
        yield owners[asked], where[asked, 0] * ctx_len + where[asked, 1], acts


def _cell(text: str) -> str:
    """Text for a cell of a table: on one line, with nothing that ends the cell or is HTML."""
    return re.sub(r"([\\|<])", r"\\\1", " ".join(text.split()))
