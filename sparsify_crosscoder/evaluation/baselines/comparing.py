"""All baselines of two models, from one pass over a text or a store of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from ...harvest.promoted_tokens import NoUnembedding, promoted_tokens
from ...harvest.source import Source
from ...runs.config import RunConfig
from ...runs.pairs import run_store, sources_and_windows
from ...runs.run import Run
from ...runs.texts import load_run_texts
from ...store.store import ActivationStore
from ...text.chat import plain_text
from ...text.texts import rows_of
from .beginnings import Beginnings, beginnings
from .beside import BaselinesBeside, beside, top_texts
from .coder import CoderConfig
from .difference import Difference, difference_of
from .directions import Read, coder_latents, components, listed_directions, mean_directions
from .found import TOP_TEXTS, Baselines, Found
from .reading import Reading, read_models, read_store
from .text_scores import listed_texts, passage, text_scores, values_of

SEEN = 5
"""Tokens and directions of each method that a list of differences is compared with."""

TOKENS = 20
"""Tokens that are listed."""

PROMOTED = 6

MOST_PAIRS_CPU = 15_000
"""Pairs that are read where the models run on a CPU, if not said otherwise."""


@dataclass(frozen=True)
class BaselineConfig:
    """How the baselines are computed."""

    outlier_multiple: float = 2.0
    """Pairs whose norm exceeds this multiple of the median say nothing of activations."""

    memory: float = 2e9
    """Bytes of activations that are held; of more, as many pairs as fit are drawn."""

    coder: CoderConfig = field(default_factory=CoderConfig)
    """Of the coder; without steps there is none."""

    most_pairs: int | None = None
    """Pairs that are read of texts, the first ones of each; 0 for all. None is 0 but for models on
    a CPU without `pairs`, which read `MOST_PAIRS_CPU`."""

    def __post_init__(self):
        if self.most_pairs is not None and self.most_pairs < 0:
            raise ValueError("--most_pairs must not be negative.")


def run_baselines(
    config: RunConfig, device: torch.device, settings: BaselineConfig | None = None
) -> Baselines:
    """The baselines of the models and texts that a harvest's options name.

    The models are run to their ends, unless `kl` is "off", which leaves out all that next tokens
    say. Raises ValueError for more than two models, and as a harvest does.
    """
    if len(config.partners) != 1:
        raise ValueError(f"Baselines are of two models, not of {1 + len(config.partners)}.")
    settings = settings or BaselineConfig()
    budget = settings.most_pairs
    if budget is None:
        budget = MOST_PAIRS_CPU if device.type == "cpu" and config.pairs is None else 0
    heads = "off" if config.kl == "off" else "on"
    sources, windows, _ = sources_and_windows(config, device, heads)
    read = beginnings(windows, budget) if budget else Beginnings(windows, [])
    texts = load_run_texts(config)
    found = baselines_of_models(sources, read.windows, texts, config.batch_size, settings)
    return replace(found, left_out=[*read.left_out, *found.left_out])


def baselines_of_models(
    sources: list[Source],
    windows: Dataset,
    texts: Dataset,
    batch_size: int,
    settings: BaselineConfig | None = None,
) -> Baselines:
    """The baselines of two models over aligned windows of texts, which `text_id` numbers."""
    settings, clock = settings or BaselineConfig(), _Clock({})
    with clock.of("reading"):
        reading = read_models(sources, windows, batch_size=batch_size, memory=settings.memory)
    return _found(reading, texts, settings, clock, sources[1])


def baselines_of_store(
    store: ActivationStore, texts: Dataset, settings: BaselineConfig | None = None
) -> Baselines:
    """The same of a store of two models, which knows nothing of single next tokens."""
    settings, clock = settings or BaselineConfig(), _Clock({})
    with clock.of("reading"):
        reading = read_store(store, memory=settings.memory)
    return _found(reading, texts, settings, clock, None)


def run_baselines_beside(
    run: Run, rows: Sequence[Mapping[str, Any]], device: torch.device, settings: BaselineConfig
) -> BaselinesBeside:
    """The baselines of a run's own pairs, and its list of differences beside them.

    From the run's store if it has one, else from its models. `rows` are entries of the list, as
    `Difference.to_dict`; those of no latent are in no single text and left out. Raises ValueError
    where texts cannot be read again, and as `Run`'s own do.
    """
    texts, clock = load_run_texts(run.config), _Clock({})
    store = run_store(run.config)
    with clock.of("reading"):
        if store is not None:
            last, reading = None, read_store(store, memory=settings.memory)
        else:
            sources, windows, _ = sources_and_windows(run.config, device, "auto")
            last, size = sources[1], run.config.batch_size
            reading = read_models(sources, windows, batch_size=size, memory=settings.memory)
    found = _found(reading, texts, settings, clock, last)
    latents = {row["rank"]: row["latent"] for row in rows if row["latent"] is not None}
    texts_of = top_texts(run.crosscoder(device=device), reading, [*dict.fromkeys(latents.values())])
    listed = {rank: texts_of[latent] for rank, latent in latents.items()}
    return BaselinesBeside(found, beside(listed, found, SEEN))


@dataclass(frozen=True)
class _Clock:
    seconds: dict[str, float]

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - begun


def _found(
    reading: Reading,
    texts: Dataset,
    settings: BaselineConfig,
    clock: _Clock,
    last: Source | None,
) -> Baselines:
    """All that a reading says; directions are put into words by the `last` model."""
    words = _texts(reading, texts)
    entries: list[Found] = []
    orders: dict[str, list[int]] = {}
    with clock.of("activation"):
        difference = difference_of(reading, settings.outlier_multiple)
        of_pairs = [*values_of(reading, words), difference.relative(reading)]
    for said in of_pairs:
        with clock.of(said.method):
            scores = text_scores(reading, said)
            orders[said.method] = scores.texts.tolist()
            entries += listed_texts(reading, scores, words)
    left_out = list(reading.left_out)
    if reading.gains is not None:
        with clock.of("token"):
            entries += _tokens(reading)
    read = _reader(reading, difference, words, last, left_out)
    found = {}
    with clock.of("mean"):
        found |= mean_directions(reading, difference)
    with clock.of("component"):
        found["component"] = components(difference)
    if settings.coder.steps and found["component"]:
        with clock.of("coder"):
            found["coder"] = coder_latents(difference, settings.coder)
    with clock.of("words for directions"):
        for method, some in found.items():
            entries += listed_directions(method, some, read)
    return Baselines(
        entries,
        orders,
        len(words),
        len(reading),
        difference.why,
        left_out,
        clock.seconds,
    )


def _tokens(reading: Reading) -> list[Found]:
    assert reading.gains is not None
    entries = []
    for rank, gain in enumerate(reading.gains.first(TOKENS), 1):
        source = 1 if gain.probabilities[1] > gain.probabilities[0] else 0
        of = repr(gain.said) if gain.said else "what only one of the vocabularies has"
        mine, other = gain.probabilities[source], gain.probabilities[1 - source]
        said = f"{of}, with {mine:.2g} on average, by the other {other:.2g}"
        texts = gain.texts[:TOP_TEXTS]
        entries.append(
            Found(rank, "token", "token", source, gain.score, gain.interval, said, "", texts)
        )
    return entries


def _texts(reading: Reading, texts: Dataset) -> dict[int, str]:
    """What the texts of a reading say, by their numbers."""
    numbers = reading.notes.text_id.unique().tolist()
    rows: Any = texts.with_format(None)[numbers]
    return dict(zip(numbers, map(plain_text, rows_of(rows)), strict=True))


def _reader(
    reading: Reading,
    difference: Difference,
    texts: Mapping[int, str],
    last: Source | None,
    left_out: list[str],
) -> Read:
    """Puts directions into words: the tokens that they promote and suppress in B, where its head
    is there, and the passage of the pair that is furthest out."""

    def promoted(vectors: Tensor) -> list[str]:
        if last is None or last.head is None:
            return [""] * len(vectors)
        try:
            found = promoted_tokens(last.head.whole, last.tokenizer, vectors, PROMOTED)
        except NoUnembedding as why:
            left_out.append(f"Tokens that directions promote: {why}.")
            return [""] * len(vectors)
        return [
            f"promotes {', '.join(repr(one.token) for one in up)}; "
            f"less {', '.join(repr(one.token) for one in down)}"
            for up, down in found
        ]

    def read(vectors: Tensor) -> list[tuple[str, str]]:
        along = torch.cat([x @ vectors.T for _, x in difference.chunks()])
        furthest = reading.kept[difference.inside[along.argmax(0)]]
        passages = [passage(reading, texts, int(pair)) for pair in furthest]
        return [*zip(promoted(vectors), passages, strict=True)]

    return read
