"""What latents are about without a judge: words, and tokens that their directions promote.

```
FOLDER/descriptions.json    what was counted and computed, with all numbers
```
"""

from __future__ import annotations

import gc
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from sparsify_crosscoder.crosscoders import Crosscoder
from sparsify_crosscoder.evaluation.false_exclusives import called_exclusive
from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.harvest.promoted_tokens import NoUnembedding, Promoted, promoted_tokens
from sparsify_crosscoder.runs.run import Run

from ..delphi.crosscoder_cache import CrosscoderLatentCache
from ..judging.results import read_result
from .characteristic_words import Characteristic, Corpus, Word, characteristic, words

FILE = "descriptions.json"
CORPUS_TOKENS = 2_000_000
"""Tokens of the corpus that are counted, at most: evenly spread windows of it."""

TOKENS_AROUND = (32, 16)
WORDS_AROUND = (10, 5)
"""Words before and after the one that a latent fires on; what follows tells less of it."""

SHOWN = 6
_AT_ONCE = 256


@dataclass(frozen=True)
class Description:
    """What was counted and computed of one latent."""

    latent: int
    passages: int
    """Its strongest passages, at most one from a window of text."""

    fires_on: list[tuple[str, int]] = field(default_factory=list)
    """Words that it is strongest at, with the number of passages."""

    words: list[Characteristic] = field(default_factory=list)
    """Words around these that stand out against the corpus."""

    promoted: dict[int, list[Promoted]] = field(default_factory=dict)
    """By source: tokens that its decoder direction makes likelier."""

    suppressed: dict[int, list[Promoted]] = field(default_factory=dict)
    """By source: tokens that it makes less likely."""

    def columns(self) -> dict[str, str | None]:
        """Values of the table's columns."""
        found = {
            "fires_on": _counted(self.fires_on, self.passages),
            "characteristic_words": _counted([one[:2] for one in self.words], self.passages),
        }
        for name, by_source in (("promoted", self.promoted), ("suppressed", self.suppressed)):
            for source in (0, 1):
                found[f"{name}_{source}"] = _quoted(by_source.get(source, []))
        return {name: text or None for name, text in found.items()}


@dataclass(frozen=True)
class Descriptions:
    """What was counted and computed of some latents."""

    latents: dict[int, Description]
    corpus_words: int
    """Words that were counted in the corpus."""

    corpus_tokens: int
    left_out: dict[int, str] = field(default_factory=dict)
    """By source: why there are no promoted tokens of its model."""

    def save(self, folder: Path) -> Path:
        """Write the file, whole or not at all, and return its place."""
        latents = [asdict(self.latents[latent]) for latent in sorted(self.latents)]
        atomic_write_json(folder / FILE, {**asdict(self), "latents": latents})
        return folder / FILE

    @classmethod
    def load(cls, folder: Path) -> Descriptions:
        """What `save` wrote. Raises ValueError for a file that is none."""
        return read_result(folder / FILE, cls._read, "a file of descriptions")

    @classmethod
    def _read(cls, loaded: dict[str, Any]) -> Descriptions:
        latents = {}
        for row in loaded.pop("latents"):
            row["fires_on"] = [(str(word), int(count)) for word, count in row["fires_on"]]
            row["words"] = [Characteristic(*one) for one in row["words"]]
            for name in ("promoted", "suppressed"):
                row[name] = {
                    int(source): [Promoted(*one) for one in some]
                    for source, some in row[name].items()
                }
            latents[row["latent"]] = Description(**row)
        left_out = {int(source): why for source, why in loaded.pop("left_out").items()}
        return cls(latents, left_out=left_out, **loaded)


def describe(
    cache: CrosscoderLatentCache,
    crosscoder: Crosscoder,
    latents: Iterable[int],
    language_model: Callable[[int], tuple[Any, Any]],
) -> Descriptions:
    """Describe latents from a finished cache and the unembeddings of their models.

    `language_model` gives the model of a source and its tokenizer; one is held at a time. A model
    that cannot be loaded or has no unembedding is left out with the reason.
    """
    chosen = sorted(set(latents))
    corpus, tokens = _corpus(cache)
    passages = _passages(cache, chosen)
    promoted, left_out = _promoted(crosscoder, chosen, language_model)
    found = {}
    for latent in chosen:
        mine = passages[latent]
        on = [peak for _, peak in mine if peak is not None]
        by_key: dict[str, list[str]] = defaultdict(list)
        for word in on:
            by_key[word.key].append(word.text)
        counted = sorted((-len(some), min(some)) for some in by_key.values())
        sides = promoted.get(latent, {})
        found[latent] = Description(
            latent,
            len(mine),
            [(text, -count) for count, text in counted],
            characteristic([around for around, _ in mine], corpus.counts),
            {source: up for source, (up, _) in sorted(sides.items())},
            {source: down for source, (_, down) in sorted(sides.items())},
        )
    return Descriptions(found, corpus.counts.total(), tokens, left_out)


def describe_run(
    run: Run, cache: CrosscoderLatentCache, crosscoder: Crosscoder, latents: Iterable[int]
) -> Descriptions:
    """`describe` with a run's own models; prints which of them is left out."""
    loading = run.loading(crosscoder.device)

    def language_model(source: int) -> tuple[Any, Any]:
        return loading.load_end(run.ends[source])

    found = describe(cache, crosscoder, latents, language_model)
    for source, why in found.left_out.items():
        print(f"No promoted tokens of {run.ends[source].model}: {why}.")
    return found


def sources_written_to(crosscoder: Crosscoder) -> Callable[[int], list[int]]:
    """Which sources' unembeddings say something of a latent: its own, or all of a shared one."""
    own = {int(i): s for s, some in enumerate(called_exclusive(crosscoder)) for i in some}
    every = list(range(len(crosscoder.d_sources)))
    return lambda latent: [own[latent]] if latent in own else every


def _corpus(cache: CrosscoderLatentCache) -> tuple[Corpus, int]:
    text, source = cache.text, cache.source
    column = f"input_ids_{source}"
    rows = np.arange(cache.num_windows)
    # Sizes of windows are alike but for each text's last.
    sample = text.windows.select_columns([column])[: min(_AT_ONCE, len(rows))][column]
    mean = max(sum(map(len, sample)) / max(len(sample), 1), 1)
    most = max(int(CORPUS_TOKENS / mean), 1)
    if len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).astype(int)]
    corpus, tokens = Corpus(), 0
    for start in tqdm(range(0, len(rows), _AT_ONCE), desc="Counting words", delay=1):
        ids = text.windows.select_columns([column])[rows[start : start + _AT_ONCE].tolist()][column]
        tokens += sum(map(len, ids))
        corpus.add(_decode_all(text.tokenizers[source], ids))
    return corpus, tokens


def _passages(
    cache: CrosscoderLatentCache, latents: Sequence[int]
) -> dict[int, list[tuple[list[Word], Word | None]]]:
    """Of each latent the words of its strongest passages, and the one that it is strongest at."""
    statistics, source = cache.statistics, cache.source
    columns = [f"input_ids_{source}", f"pairs_{source}"]
    windows = cache.text.windows.select_columns(columns)
    places: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for latent in latents:
        for rank, (window, pair) in enumerate(statistics.context_pairs[latent].tolist()):
            if window >= 0:
                places[window].append((latent, rank, pair))
    found: dict[int, dict[int, tuple[list[Word], Word | None]]] = {one: {} for one in latents}
    tokenizer = cache.text.tokenizers[source]
    for window in tqdm(sorted(places), desc="Reading passages", unit="window", delay=1):
        row = windows[window]
        ids, pairs = row[columns[0]], row[columns[1]]
        read: dict[int, tuple[list[Word], Word | None]] = {}
        for latent, rank, pair in places[window]:
            if pair not in read:
                read[pair] = words_around(tokenizer, ids, pairs[pair])
            found[latent][rank] = read[pair]
    return {latent: [of[rank] for rank in sorted(of)] for latent, of in found.items()}


def words_around(tokenizer: Any, ids: Sequence[int], place: int) -> tuple[list[Word], Word | None]:
    """Whole words around a token, and the one that the token is in or ends."""
    first = max(place - TOKENS_AROUND[0], 0)
    stop = min(place + TOKENS_AROUND[1] + 1, len(ids))
    before, whole = _decode_all(tokenizer, [ids[first : place + 1], ids[first:stop]])
    # A character whose bytes are not all there yet is no part of the text so far.
    ending = before.rstrip("\ufffd")
    at = len(ending) - (len(ending) == len(before))
    found = words(whole)
    # Words at the edges of what was decoded may be cut.
    if first > 0 and found and found[0].start == 0:
        found = found[1:]
    if stop < len(ids) and found and found[-1].end == len(whole):
        found = found[:-1]
    peak = next((i for i, word in enumerate(found) if word.start <= at < word.end), None)
    if peak is None:
        near = [word for word in found if word.end <= at][-WORDS_AROUND[0] :]
        return near, None
    return found[max(peak - WORDS_AROUND[0], 0) : peak + WORDS_AROUND[1] + 1], found[peak]


def _promoted(
    crosscoder: Crosscoder,
    latents: Sequence[int],
    language_model: Callable[[int], tuple[Any, Any]],
) -> tuple[dict[int, dict[int, tuple[list[Promoted], list[Promoted]]]], dict[int, str]]:
    written_to = sources_written_to(crosscoder)
    found: dict[int, dict[int, Any]] = defaultdict(dict)
    left_out: dict[int, str] = {}
    for source in range(len(crosscoder.d_sources)):
        mine = [latent for latent in latents if source in written_to(latent)]
        if not mine:
            continue
        decoder = crosscoder.decoder(source)[torch.tensor(mine)].detach().float().cpu()
        directions = decoder / float(crosscoder.factors[source])
        print(f"Loading model {source} for its unembedding", file=sys.stderr, flush=True)
        try:
            model, tokenizer = language_model(source)
            for latent, sides in zip(
                mine, promoted_tokens(model, tokenizer, directions), strict=True
            ):
                found[latent][source] = sides
        except NoUnembedding as reason:
            left_out[source] = str(reason)
        except ValueError as reason:
            left_out[source] = f"its model cannot be loaded: {reason}"
        model = tokenizer = None
        gc.collect()
    return found, left_out


def _decode_all(tokenizer: Any, ids: Sequence[Sequence[int]]) -> list[str]:
    return tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False)


def _counted(found: Iterable[Sequence[Any]], of: int) -> str:
    return ", ".join(f"{visible(word)} ({count} of {of})" for word, count in _first(found))


def _quoted(found: Sequence[Promoted]) -> str:
    return ", ".join(f"\u201c{visible(one.token)}\u201d" for one in _first(found))


def visible(text: str) -> str:
    """A word or token in which ends of lines and tabs can be seen."""
    return text.replace("\n", "\u23ce").replace("\t", "\u21e5").replace("\r", "\u240d")


def _first(found: Iterable[Any]) -> Iterator[Any]:
    for one, _ in zip(found, range(SHOWN), strict=False):
        yield one


def table_columns(descriptions: Descriptions | None) -> Mapping[int, Mapping[str, str | None]]:
    """Values of the table's columns by latent."""
    found = descriptions.latents if descriptions is not None else {}
    return {latent: one.columns() for latent, one in found.items()}
