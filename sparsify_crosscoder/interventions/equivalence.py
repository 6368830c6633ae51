"""Whether a shared latent does the same in both models: what each loses where it is ablated.

P pairs, p of them at which a latent is looked at, D width of one source, K beginnings of text that
both vocabularies have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from ..crosscoders import Crosscoder
from ..evaluation.false_exclusives import called_exclusive
from ..harvest.common_tokens import CommonTokens, common_tokens
from ..harvest.divergence import LastStates
from ..harvest.model_identity import source_names
from ..harvest.source import Source
from ..intervals import Interval, interval_over_texts
from ..runs.models import load_run_sources
from ..runs.run import Run
from .basis import measured_identity
from .equivalence_config import EquivalenceConfig
from .equivalence_found import Equivalence, Equivalences
from .graft import ReadPairs, check_heads
from .graft_text import text_to_graft
from .grafting import Graft, GraftedReader, sums_by_text
from .likeness import Changes, likeness_of_prompts
from .stitching import Stitching

LEAST_PAIRS, LEAST_TEXTS = 8, 4
"""On which a latent fires, to be looked at; latents that are drawn fire in so many texts."""

MOST_PAIRS = 48
"""At which a latent is looked at: those where it is most active."""

_WINDOWS = 4  # read at once, so that those without the latent are not read


def equivalence(
    run: Run,
    config: EquivalenceConfig | None = None,
    *,
    stitching: Stitching | None = None,
    seed: int | None = None,
    device: str | torch.device | None = None,
) -> Equivalences:
    """Ablate shared latents of a run in its first two models, one at a time in both, and compare
    how the next tokens change at the same pairs.

    `stitching` has the map through which decoders are compared where the models share no basis;
    without it their cosine is not known. Raises Headless for models without heads, ValueError for
    latents that there are none of or that are exclusive, where no latent fires often enough, and
    where it is not known what a vocabulary's tokens spell.
    """
    config = config or EquivalenceConfig()
    check_heads(run)
    crosscoder = run.crosscoder(seed, device)
    shared = _shared(crosscoder, config.latents)
    maps = stitching or measured_identity(run, crosscoder.sources, crosscoder.device)
    if maps is not None:
        maps.check_sources(crosscoder.sources)
    sources = load_run_sources(run.config, crosscoder.device, "on")[:2]
    common = common_tokens(sources[0], sources[1])
    text = text_to_graft(run, sources, config.texts)
    read = ReadPairs.of(run, crosscoder, sources, text)
    activity = _activity(read)
    chosen, left_out = _chosen(activity, shared, config)
    models = [_Model(source, s, read, common) for s, source in enumerate(sources)]
    cosines = _cosines(read, maps, chosen)
    found = []
    for latent in tqdm(chosen, desc="Ablating", unit="latent"):
        others = _others(shared, activity, latent, config)
        compared = _compared(models, read, latent, activity[latent], others)
        norm = float(crosscoder.relative_decoder_norm()[latent])
        found.append(Equivalence(latent, norm, cosines[latent], **compared))
    names = source_names(crosscoder.sources)
    return Equivalences(names, len(text.windows), text.held_out, found, left_out)


class _Effect(NamedTuple):
    """What an ablation does to one model at p pairs."""

    changes: Changes
    kl: Tensor
    """Of the beginnings, from those of the model as it is, nats `[p]`."""


class _Model:
    """One of the two models, as it is and with something taken from its activations."""

    def __init__(self, source: Source, number: int, read: ReadPairs, common: CommonTokens):
        assert source.head is not None
        self._head, self._number, self._common = source.head, number, common
        self._reader = GraftedReader(source, number, read.text, min(read.batch_size, _WINDOWS))
        self._raw = read.raw[number].float().cpu()
        windows = read.text.windows
        lengths = torch.tensor([len(ids) for ids in windows[f"input_ids_{number}"]])
        first = (lengths.cumsum(0) - lengths).tolist()
        pairs = windows[f"pairs_{number}"][:]
        rows = [start + torch.tensor(some) for start, some in zip(first, pairs, strict=True)]
        self._rows = torch.cat(rows)

    def without(self, taken: Tensor, where: Tensor, places: Tensor) -> _Effect:
        """Take `taken` `[P, D]` from the activations at the pairs `where` `[P]`, and see what
        changes at some of them, `places` `[p]`."""
        after = self._reader.states(Graft(self._raw - taken, where))
        before, changed = (self._expected(one, places) for one in (self._reader.own, after))
        probability = before.exp()
        kl = torch.linalg.vecdot(probability, before - changed).clamp_min(0)
        return _Effect(Changes(changed - before, probability), kl)

    @torch.inference_mode()
    def _expected(self, last: LastStates, places: Tensor) -> Tensor:
        """Log-probabilities of the beginnings `[p, K]`."""
        rows = self._rows[places].to(last.states.device)
        logs = self._head(last.states[rows]).log_softmax(-1)
        return self._common.log_probabilities(self._number, logs).cpu()


def _compared(
    models: Sequence[_Model], read: ReadPairs, latent: int, fires: _Fires, others: Sequence[int]
) -> dict[str, Any]:
    """What an `Equivalence` says of one latent."""
    acts = torch.zeros(len(read.usual))
    acts[fires.places] = fires.acts
    where, places = acts > 0, _strongest(fires)
    written = [acts[:, None] * _writes(read, s, latent) for s in range(2)]
    first, second = (
        model.without(taken, where, places) for model, taken in zip(models, written, strict=True)
    )
    alike, _ = likeness_of_prompts(first.changes, second.changes)
    by_chance = []
    for other in others:
        unit = F.normalize(_writes(read, 1, other), dim=0)
        instead = models[1].without(written[1].norm(dim=1, keepdim=True) * unit, where, places)
        by_chance.append(likeness_of_prompts(first.changes, instead.changes)[0])
    null = torch.stack(by_chance).mean(0)
    _, texts = read.text.text_of_pair[places].unique(return_inverse=True)

    def mean(values: Tensor) -> Interval:
        sums = sums_by_text(torch.stack([values, torch.ones_like(values)]), texts)
        return interval_over_texts(sums, lambda s: s[..., 0] / s[..., 1])

    return {
        "pairs": len(places),
        "correlation": mean(alike),
        "null": mean(null),
        "gap": mean(alike - null),
        "kl": (mean(first.kl), mean(second.kl)),
    }


def _strongest(fires: _Fires) -> Tensor:
    """Where a latent is most active, ascending; in two texts at least."""
    order = fires.acts.argsort(descending=True, stable=True)
    chosen = order[:MOST_PAIRS]
    if len(fires.texts[chosen].unique()) < 2:
        elsewhere = (fires.texts[order] != fires.texts[order[0]]).nonzero()[:, 0]
        chosen = torch.cat([chosen[:-1], order[elsewhere[:1]]])
    return fires.places[chosen].sort().values


def _shared(crosscoder: Crosscoder, latents: Sequence[int] | None) -> list[int]:
    """Latents that are called exclusive to no source; raises ValueError where asked for others."""
    exclusive = {int(one) for some in called_exclusive(crosscoder) for one in some}
    for latent in latents or []:
        if not 0 <= latent < crosscoder.num_latents:
            raise ValueError(
                f"There is no latent {latent}: the run has {crosscoder.num_latents:,}, from 0 on."
            )
        if latent in exclusive:
            raise ValueError(
                f"Latent {latent} is exclusive to one of the models: what it does in the other "
                "cannot be compared. Name shared latents."
            )
    return [one for one in range(crosscoder.num_latents) if one not in exclusive]


class _Fires(NamedTuple):
    """Where a latent is active, and how much."""

    places: Tensor
    """`[n]`, ascending."""

    acts: Tensor
    """`[n]`."""

    texts: Tensor
    """`[n]`, the text of each."""

    @property
    def often(self) -> tuple[int, int]:
        """On how many pairs, and in how many texts."""
        return len(self.places), len(self.texts.unique())


def _activity(read: ReadPairs) -> dict[int, _Fires]:
    """The pairs at which each latent is active, but for outliers; of latents that fire."""
    first = torch.tensor([0, *(code.shape[0] for code in read.codes)]).cumsum(0)
    parts = zip(read.codes, first[:-1].tolist(), strict=True)
    places = torch.cat([code.rows.cpu() + start for code, start in parts])
    acts = torch.cat([code.acts.detach().float().cpu() for code in read.codes])
    latents = torch.cat([code.indices.cpu() for code in read.codes])
    kept = (read.usual[places] & (acts > 0)).nonzero()[:, 0]
    kept = kept[latents[kept].argsort(stable=True)]
    numbers, counts = latents[kept].unique_consecutive(return_counts=True)
    texts = read.text.text_of_pair
    return {
        latent: _Fires(places[mine], acts[mine], texts[places[mine]])
        for latent, mine in zip(numbers.tolist(), kept.split(counts.tolist()), strict=True)
    }


def _chosen(
    activity: dict[int, _Fires], shared: Sequence[int], config: EquivalenceConfig
) -> tuple[list[int], dict[int, str]]:
    """The latents that are looked at, and why others that were asked for are not."""
    if config.latents is not None:
        told = {
            latent: activity[latent].often if latent in activity else (0, 0)
            for latent in dict.fromkeys(config.latents)
        }
        left_out = {
            latent: f"fires on {pairs} pairs of {texts} texts here; {LEAST_PAIRS} of 2 are needed"
            for latent, (pairs, texts) in told.items()
            if pairs < LEAST_PAIRS or texts < 2
        }
        return [latent for latent in told if latent not in left_out], left_out
    often = [
        latent
        for latent in shared
        if latent in activity
        and activity[latent].often >= (LEAST_PAIRS, 0)
        and activity[latent].often[1] >= LEAST_TEXTS
    ]
    if not often:
        raise ValueError(
            f"No shared latent fires on {LEAST_PAIRS} pairs of {LEAST_TEXTS} texts. Read more of "
            "them with --texts."
        )
    generator = torch.Generator().manual_seed(config.seed)
    before = [one for one in dict.fromkeys(config.first) if one in often][: config.count]
    drawn = [often[place] for place in torch.randperm(len(often), generator=generator).tolist()]
    drawn = [one for one in drawn if one not in before][: config.count - len(before)]
    return [*before, *sorted(drawn)], {}


def _others(
    shared: Sequence[int], activity: dict[int, _Fires], latent: int, config: EquivalenceConfig
) -> list[int]:
    """Shared latents that fire here, other than this one, as many as controls are asked for."""
    pool = [one for one in shared if one in activity and one != latent]
    if not pool:
        raise ValueError("No other shared latent fires in these texts, to be compared with.")
    generator = torch.Generator().manual_seed(config.seed + 1 + latent)
    drawn = torch.randperm(len(pool), generator=generator)[: config.controls]
    return [pool[int(place)] for place in drawn]


def _writes(read: ReadPairs, source: int, latent: int) -> Tensor:
    """What a latent writes in a source's raw activations where its activation is 1, `[D]`."""
    crosscoder = read.crosscoder
    row = crosscoder.decoder(source)[latent].detach().float()
    return (row / crosscoder.factors[source]).cpu()


def _cosines(
    read: ReadPairs, maps: Stitching | None, latents: Sequence[int]
) -> dict[int, float | None]:
    """Of what each writes in the second model, and of what the map makes of what it writes in the
    first."""
    found: dict[int, float | None] = dict.fromkeys(latents)
    if maps is None:
        return found
    moved = maps.to("cpu")
    for latent in latents:
        carried = moved.direction(_writes(read, 0, latent), 0)
        found[latent] = float(F.cosine_similarity(carried, _writes(read, 1, latent), dim=0))
    return found
