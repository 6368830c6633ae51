"""What Neuronpedia shows of a run's latents, gathered for every one of its models."""

from __future__ import annotations

import gc
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..crosscoders import Crosscoder
from ..endings import UsageError
from ..evaluation.top import (
    Occurrences,
    check_latents,
    choose_by_source,
    collect_occurrences,
    in_turn,
)
from ..files import atomic_path
from ..harvest.model_identity import source_names
from ..harvest.promoted_tokens import NoUnembedding, Promoted, promoted_tokens
from ..runs.pairs import FirstPairs
from ..runs.run import Run
from .neuronpedia import Context, Feature, Place, dictionary_rows, write_dictionary
from .origin import Origin
from .privacy import without_places

TOKENS_AROUND = (48, 15)
"""Tokens before and after a passage's strongest."""

BINS = 50
_TOKENS_SHOWN = 10
_DESCRIBED_BY = 5


@dataclass(frozen=True)
class DashboardConfig:
    """What is shown."""

    latents: Sequence[int] = ()
    """Which; if none are named, `count` that say most about what one model has alone."""

    count: int = 100
    pairs: int = 32_768
    """Pairs that are read."""

    passages: int = 20
    """Passages of each latent, at most one from a window of text."""

    table: Path | None = None
    """features.parquet of an audit of the run, which has explanations."""


@dataclass(frozen=True)
class Dashboards:
    """What was written for Neuronpedia."""

    run: str
    out: str
    latents: list[int]
    pairs: int
    folders: list[str]
    """The dictionary of each model."""

    unread: dict[str, str]
    """Models whose promoted tokens could not be read, and why."""

    def text(self) -> str:
        """What is where, and what is missing."""
        lines = [
            f"Wrote {len(self.latents):,} latents, by {self.pairs:,} pairs, for Neuronpedia:",
            *(f"  {folder}" for folder in self.folders),
            *(f"No promoted tokens of {name}: {why}." for name, why in self.unread.items()),
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Found:
    """What is alike for all models."""

    crosscoder: Crosscoder
    latents: list[int]
    occurrences: Occurrences
    first: FirstPairs
    entries: dict[int, Tensor]
    """Of each latent its activations, as places in `occurrences`, the strongest first."""


def export_dashboards(
    run: Run,
    out: str | Path,
    config: DashboardConfig | None = None,
    *,
    seed: int | None = None,
    device: str | torch.device | None = None,
) -> Dashboards:
    """Write latents of all models of a run as Neuronpedia imports them, into a new folder.

    Every latent has a row in every model: its passages in that model's tokens, activations and
    their histogram, how often it fires, the tokens that its direction promotes and suppresses (in
    standard deviations of the vocabulary), the direction, and a description. Raises UsageError if
    `out` exists, for a latent that there is not, and for hookpoints that are no layer's output.
    """
    out, config = Path(out), config or DashboardConfig()
    if out.exists() or out.is_symlink():
        raise UsageError(f"'{out}' exists already; name a new folder with --out.")
    crosscoder = run.crosscoder(seed, device)
    ends = run.ends
    layers = [Origin(e.model, e.revision, e.hookpoint, None).layer for e in ends]
    if None in layers:
        place = ends[layers.index(None)].hookpoint
        raise UsageError(f"Neuronpedia knows layers' outputs, and '{place}' is none.")
    explained = {} if config.table is None else _explanations(config.table)
    found = _gather(run, crosscoder, config, device)
    names = [re.sub(r"[^a-z0-9.]+", "-", name.lower()) for name in source_names(crosscoder.sources)]
    set_name = "crosscoder-" + re.sub(r"[^a-z0-9.]+", "-", run.path.absolute().name.lower())
    now = datetime.now(timezone.utc).replace(microsecond=0).isoformat()
    title = f"Crosscoder of {' and '.join(names)}"
    folders, unread = [], {}
    with atomic_path(out) as folder:
        folder.mkdir()
        for s, layer in enumerate(layers):
            assert layer is not None
            place = Place(names[s], layer, set_name, now)
            tokens, why = _tokens(run, found, s, device)
            if why is not None:
                unread[names[s]] = why
            features = list(_features(found, s, tokens, config, explained))
            data = without_places(run.config.dataset)
            rows = dictionary_rows(place, crosscoder.d_sources[s], data, title)
            hook = f"blocks.{layer}.hook_resid_post"
            made = write_dictionary(folder, place, features, hook, rows)
            folders.append(str(out / made.relative_to(folder)))
    pairs = len(found.occurrences.windows)
    return Dashboards(str(run.path), str(out), found.latents, pairs, folders, unread)


def _gather(
    run: Run, crosscoder: Crosscoder, config: DashboardConfig, device: str | torch.device | None
) -> _Found:
    try:
        check_latents(crosscoder, config.latents)
    except ValueError as error:
        raise UsageError(str(error)) from error
    first = run.first_pairs(config.pairs, device)
    found = collect_occurrences(crosscoder, first.chunks, run.config.outlier_multiple)
    latents = list(config.latents) or _chosen(crosscoder, found, config.count)
    wanted = torch.zeros(crosscoder.num_latents, dtype=torch.bool)
    wanted[latents] = True
    some = wanted[found.latents].nonzero()[:, 0]
    some = some[found.acts[some].argsort(descending=True, stable=True)]
    entries = {latent: some[found.latents[some] == latent] for latent in latents}
    return _Found(crosscoder, latents, found, first, entries)


def _chosen(crosscoder: Crosscoder, found: Occurrences, count: int) -> list[int]:
    """Exclusive latents of all models in turn, then the shared ones of most energy."""
    chosen = in_turn(choose_by_source(crosscoder, found, count))[:count]
    norms = crosscoder.decoder_norms().float().cpu().pow(2).sum(1)
    energies = found.energies() * norms
    energies[chosen] = 0
    rest = energies.argsort(descending=True, stable=True).tolist()
    fires = found.firing_counts() > 0
    chosen += [i for i in rest if fires[i] and i not in {*chosen}][: count - len(chosen)]
    return chosen


def _tokens(
    run: Run, found: _Found, source: int, device: str | torch.device | None
) -> tuple[dict[int, tuple[list[Promoted], list[Promoted]]], str | None]:
    """What each latent's direction promotes and suppresses in a model, or why it is not known."""
    writing = [one for one in found.latents if found.crosscoder.decoder_norms()[one, source] > 0]
    if not writing:
        return {}, None
    directions = found.crosscoder.decoder(source)[writing].detach().float().cpu()
    try:
        model, tokenizer = run.loading(device).load_end(run.ends[source])
        read = promoted_tokens(model, tokenizer, directions, _TOKENS_SHOWN)
        del model
    except NoUnembedding as error:
        return {}, str(error)
    finally:
        gc.collect()
    return dict(zip(writing, read, strict=True)), None


def _features(
    found: _Found,
    source: int,
    tokens: Mapping[int, tuple[list[Promoted], list[Promoted]]],
    config: DashboardConfig,
    explained: Mapping[int, Mapping[str, Any]],
) -> Iterator[Feature]:
    crosscoder, all_of = found.crosscoder, found.occurrences
    factor = crosscoder.factors[source]
    texts = _TokenTexts(found.first.tokenizers[source])
    for latent in tqdm(found.latents, desc=f"Latents of model {source}", unit="latent", delay=1):
        entries = found.entries[latent]
        contexts = list(_contexts(found, entries, source, texts, config.passages))
        promoted, suppressed = tokens.get(latent, ([], []))
        vector = (crosscoder.decoder(source)[latent].detach() / factor).float().cpu()
        yield Feature(
            index=latent,
            frequency=len(entries) / len(all_of.windows),
            contexts=contexts,
            histogram=_histogram(all_of.acts[entries]),
            promoted=[(one.token, one.z) for one in promoted],
            suppressed=[(one.token, one.z) for one in suppressed],
            vector=vector.tolist() if bool(vector.any()) else [],
            description=_description(contexts, promoted, source, explained.get(latent, {})),
        )


def _contexts(
    found: _Found, entries: Tensor, source: int, texts: _TokenTexts, most: int
) -> Iterator[Context]:
    """The strongest passages, in one model's tokens."""
    all_of = found.occurrences
    where, places = all_of.windows[all_of.rows[entries]], all_of.positions[all_of.rows[entries]]
    strongest: dict[int, int] = {}
    for number, window in enumerate(where.tolist()):
        if len(strongest) == most and window not in strongest:
            break
        strongest.setdefault(window, number)
    before, after = TOKENS_AROUND
    for number, one in strongest.items():
        window, here = found.first.windows[number], (where == number).nonzero()[:, 0]
        ids, pairs = window[f"input_ids_{source}"], window[f"pairs_{source}"]
        peak = pairs[int(places[one])]
        start, stop = max(peak - before, 0), min(peak + after + 1, len(ids))
        values = [0.0] * (stop - start)
        for place, entry in zip(places[here].tolist(), entries[here].tolist(), strict=True):
            if start <= pairs[place] < stop:
                values[pairs[place] - start] = round(float(all_of.acts[entry]), 4)
        yield Context(texts.of(ids[start:stop]), values)


class _TokenTexts:
    """Tokens as text, one by one, with the space before a word where the tokenizer has it there."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.known: dict[int, str] = {}

    def of(self, ids: Sequence[int]) -> list[str]:
        return [self._of(one) for one in ids]

    def _of(self, one: int) -> str:
        if one not in self.known:
            text = self.tokenizer.decode([one])
            piece = self.tokenizer.convert_ids_to_tokens(one)
            spaced = str(piece).startswith("▁") and not text.startswith(" ")
            self.known[one] = f" {text}" if spaced else text
        return self.known[one]


def _histogram(acts: Tensor) -> tuple[list[float], list[int]]:
    if not len(acts):
        return [], []
    top = float(acts.max())
    counts = torch.histc(acts.float(), BINS, 0, top)
    middles = [round((i + 0.5) * top / BINS, 5) for i in range(BINS)]
    return middles, [int(count) for count in counts]


def _description(
    contexts: Sequence[Context],
    promoted: Sequence[Promoted],
    source: int,
    row: Mapping[str, Any],
) -> str:
    """The judge's explanation of an audit, or what was counted: words, and promoted tokens."""
    if row.get("explanation"):
        return str(row["explanation"])
    peaks = [c.tokens[c.values.index(max(c.values))].strip() for c in contexts]
    counted = Counter(peak for peak in peaks if peak).most_common(_DESCRIBED_BY)
    fires = row.get("fires_on") or ", ".join(f"“{token}” ({n})" for token, n in counted)
    words = row.get("characteristic_words")
    likelier = row.get(f"promoted_{source}") or ", ".join(
        f"“{one.token.strip()}”" for one in promoted[:_DESCRIBED_BY]
    )
    said = {"Fires on": fires, "Around it": words, "Promotes": likelier}
    return " ".join(f"{what} {which}." for what, which in said.items() if which)


def _explanations(table: Path) -> dict[int, dict[str, Any]]:
    import pyarrow.parquet as parquet

    try:
        known = parquet.read_table(table)
    except (OSError, ValueError) as error:
        raise UsageError(f"'{table}' is no features.parquet of an audit: {error}") from error
    wanted = ("latent", "explanation", "fires_on", "characteristic_words")
    columns = [*wanted, "promoted_0", "promoted_1"]
    rows = known.select([name for name in columns if name in known.column_names]).to_pylist()
    return {row["latent"]: row for row in rows}
