"""What a crosscoder's reconstruction does to the models of a run in place of their activations.

P pairs, T tokens, D width of one source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..crosscoders import Crosscoder
from ..crosscoders.codes import SparseCode
from ..evaluation.false_exclusives import called_exclusive
from ..harvest.harvest import harvest_windows
from ..harvest.model_identity import source_names
from ..harvest.source import Source
from ..intervals import Interval, interval_over_texts
from ..runs.models import load_run_sources, without_head
from ..runs.run import Run
from ..store.normalization import within_norm
from .graft_config import GraftConfig
from .graft_text import AlignedText, text_to_graft
from .grafting import Graft, GraftedReader, expected, sums_by_text

_PAIRS_AT_ONCE = 4096


class Headless(ValueError):
    """A model has no head, so that it expects no next tokens."""


class Effect(NamedTuple):
    """What a change of activations does to a model, nats a token."""

    loss: Interval
    """Change of the cross-entropy."""

    kl: Interval
    """KL divergence of the next token from that of the model as it is, or the change of it."""


class LeftOut(NamedTuple):
    """What latents contribute to the reconstruction: what it loses without them."""

    latents: int
    effect: Effect | None
    """Beside the whole reconstruction; None where there are no such latents."""


@dataclass(frozen=True)
class GraftedModel:
    """What grafts do to one model."""

    source: int
    tokens: int
    """That have a next one: those whose loss counts."""

    replaced: int
    """Tokens whose activation is replaced. The others of the texts are no end of an aligned pair,
    or outliers as in training, and stay as they are."""

    outliers: int
    """Ends of pairs that stay as they are because of an outlier in one of the models."""

    loss: Interval
    """Cross-entropy of the model as it is, nats a token."""

    effects: dict[str, Effect]
    """Of the "reconstruction", of "zero" and of the "mean" of these tokens' activations."""

    recovered: dict[str, Interval]
    """Share of the loss by "zero" and by the "mean" that the reconstruction does not have."""

    left_out: dict[str, LeftOut]
    """By "exclusive", "kept" (by the filter, if known) and "shared" latents."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "source": self.source,
            "tokens": self.tokens,
            "replaced": self.replaced,
            "outliers": self.outliers,
            "loss": self.loss._asdict(),
            "effects": {name: _effect(one) for name, one in self.effects.items()},
            "recovered": {name: one._asdict() for name, one in self.recovered.items()},
            "left_out": {
                name: {"latents": one.latents, **(_effect(one.effect) if one.effect else {})}
                for name, one in self.left_out.items()
            },
        }


@dataclass(frozen=True)
class Grafted:
    """What a crosscoder's reconstruction does to the models of its run."""

    names: list[str]
    texts: int
    held_out: bool
    """Whether the run did not train on these texts."""

    strength: float
    models: list[GraftedModel]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "texts": self.texts,
            "held_out": self.held_out,
            "strength": self.strength,
            "models": [
                {"name": name, **one.to_dict()}
                for name, one in zip(self.names, self.models, strict=True)
            ],
        }

    def text(self) -> str:
        """A table for each model."""
        whose = "held out by the run" if self.held_out else "that the run trained on"
        at = "" if self.strength == 1 else f", at strength {self.strength:g}"
        lines = [
            f"{self.texts} texts {whose}{at}. The reconstruction stands in place of the activation "
            "at the ends of aligned pairs; elsewhere, and at outliers, the activation stays."
        ]
        for name, one in zip(self.names, self.models, strict=True):
            lines += ["", *_model_lines(name, one)]
        return "\n".join(lines)


def graft(
    run: Run,
    config: GraftConfig | None = None,
    *,
    kept: Sequence[Sequence[int]] | None = None,
    seed: int | None = None,
    device: str | torch.device | None = None,
) -> Grafted:
    """Read held-out texts with the reconstruction in place of each model's activation.

    `kept` are the latents that the filter keeps, by source. Each model's loss and its KL divergence
    from itself are of all tokens of the texts, whether theirs are replaced or not. Raises
    Headless for models without heads, ValueError where the run's models or texts have changed.
    """
    config = config or GraftConfig()
    check_heads(run)
    crosscoder = run.crosscoder(seed, device)
    sources = load_run_sources(run.config, crosscoder.device, "on")
    text = text_to_graft(run, sources, config.texts)
    read = ReadPairs.of(run, crosscoder, sources, text)
    parts = _parts(crosscoder, kept)
    models = [
        _grafted(source, s, read, parts[s], config.strength)
        for s, source in enumerate(tqdm(sources, desc="Grafting", unit="model"))
    ]
    names = source_names(crosscoder.sources)
    return Grafted(names, len(text.windows), text.held_out, config.strength, models)


def check_heads(run: Run) -> None:
    """Raise Headless where a model of the run has no head."""
    if (name := without_head(run.ends, run.config)) is not None:
        raise Headless(
            f"{name} is no causal language model with a head, so that what a change of its "
            "activations does cannot be measured. Take a run of models that have one."
        )


@dataclass(frozen=True)
class ReadPairs:
    """The pairs of some texts, read by the models and encoded by a crosscoder."""

    crosscoder: Crosscoder
    text: AlignedText
    raw: list[Tensor]
    """Raw activations `[P, D]` per source."""

    usual: Tensor
    """`[P]`, which are no outliers, as training has them."""

    codes: list[SparseCode]
    """Of some pairs at a time."""

    batch_size: int

    @classmethod
    @torch.no_grad()
    def of(
        cls, run: Run, crosscoder: Crosscoder, sources: Sequence[Source], text: AlignedText
    ) -> ReadPairs:
        """What the run's models and its crosscoder make of a text."""
        headless = [replace(source, head=None) for source in sources]
        size = run.config.batch_size
        raw, _ = harvest_windows(headless, text.windows, range(len(text.windows)), batch_size=size)
        raw = [x.to(crosscoder.device) for x in raw]
        medians = crosscoder.median_norms
        usual = within_norm(raw, run.config.outlier_multiple, medians=medians)
        chunks = zip(*(x.split(_PAIRS_AT_ONCE) for x in raw), strict=True)
        codes = [crosscoder.encode_sparse(list(chunk)) for chunk in chunks]
        return cls(crosscoder, text, raw, usual.cpu(), codes, size)

    @torch.no_grad()
    def reconstruction(self, source: int, without: Tensor | None = None) -> Tensor:
        """What the crosscoder makes of one source's activations, `[P, D]` in its own space, on the
        CPU; `without` some latents `[m]`."""
        used = torch.ones(self.crosscoder.num_latents, device=self.crosscoder.device)
        if without is not None:
            used[without.to(used.device)] = 0
        columns = self.crosscoder.columns[source]
        parts = [
            self.crosscoder.decode_sparse(code.with_acts(code.acts * used[code.indices]))
            for code in self.codes
        ]
        return torch.cat([part[:, columns].float().cpu() for part in parts])

    def written(self, source: int, latents: Tensor) -> Tensor:
        """What latents `[m]` write in one source, `[P, D]` in its own space, on the CPU."""
        return self.reconstruction(source) - self.reconstruction(source, latents)

    def firings(self) -> Tensor:
        """Pairs on which each latent is active, `[M]`."""
        counts = [code.indices.bincount(minlength=code.shape[1]) for code in self.codes]
        return torch.stack(counts).sum(0).cpu()


def _parts(crosscoder: Crosscoder, kept: Sequence[Sequence[int]] | None) -> list[dict[str, Tensor]]:
    """For each source the latents that are left out of its reconstruction, by name."""
    exclusive = called_exclusive(crosscoder)
    shared = torch.ones(crosscoder.num_latents, dtype=torch.bool)
    shared[torch.cat(exclusive)] = False
    parts = []
    for s, mine in enumerate(exclusive):
        one = {"exclusive": mine}
        if kept is not None:
            one["kept"] = torch.tensor(list(kept[s]), dtype=torch.long)
        parts.append({**one, "shared": shared.nonzero()[:, 0]})
    return parts


def _grafted(
    source: Source, number: int, read: ReadPairs, parts: Mapping[str, Tensor], strength: float
) -> GraftedModel:
    reader = GraftedReader(source, number, read.text, read.batch_size)
    head, where = source.head, read.usual
    assert head is not None
    own = read.raw[number].float().cpu()
    mean = own[where].mean(0) if where.any() else own.mean(0)
    grafts = {
        "reconstruction": read.reconstruction(number),
        "zero": torch.zeros_like(own),
        "mean": mean.expand_as(own),
    }
    there = {name: latents for name, latents in parts.items() if len(latents)}
    grafts |= {name: read.reconstruction(number, latents) for name, latents in there.items()}
    states = [(head, reader.states(Graft(values, where, strength))) for values in grafts.values()]
    tokens = read.text.next_tokens(number)
    found = expected(tokens, (head, reader.own), states)
    losses, kl = found.losses, found.kl
    names = list(grafts)
    ones = torch.ones(1, len(tokens.rows))

    def mean_of(values: Tensor) -> Interval:
        sums = sums_by_text(torch.cat([values[None], ones]), tokens.texts)
        return interval_over_texts(sums, lambda s: s[..., 0] / s[..., 1])

    def effect(name: str, beside: str | None = None) -> Effect:
        v = names.index(name)
        loss, divergence = losses[0], torch.zeros_like(kl[0])
        if beside is not None:
            known = names.index(beside)
            loss, divergence = losses[1 + known], kl[known]
        return Effect(mean_of(losses[1 + v] - loss), mean_of(kl[v] - divergence))

    def recovered(name: str) -> Interval:
        worst, graft = (losses[1 + names.index(one)] for one in (name, "reconstruction"))
        sums = sums_by_text(torch.stack([worst - graft, worst - losses[0]]), tokens.texts)
        return interval_over_texts(sums, lambda s: s[..., 0] / s[..., 1])

    left_out = {
        name: LeftOut(len(some), effect(name, "reconstruction") if name in there else None)
        for name, some in parts.items()
    }
    return GraftedModel(
        number,
        len(tokens.rows),
        int(where.sum()),
        int((~where).sum()),
        mean_of(losses[0]),
        {name: effect(name) for name in ("reconstruction", "zero", "mean")},
        {name: recovered(name) for name in ("zero", "mean")},
        left_out,
    )


def _effect(one: Effect) -> dict[str, Any]:
    return {"loss": one.loss._asdict(), "kl": one.kl._asdict()}


def _model_lines(name: str, one: GraftedModel) -> list[str]:
    outliers = f", {one.outliers:,} outliers" if one.outliers else ""
    share = one.replaced / max(one.tokens, 1)
    lines = [
        f"{name}: {one.replaced:,} activations replaced, {share:.0%} of {one.tokens:,} tokens"
        f"{outliers}; loss {one.loss.text()} nats a token",
        f"  {'in place of the activation':<28} {'loss':<26} KL from itself",
    ]
    for what, effect in one.effects.items():
        lines.append(f"  {what:<28} {effect.loss.text(sign=True):<26} {effect.kl.text()}")
    shares = [
        f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%}) of what is lost by the {what}"
        for what, share in one.recovered.items()
    ]
    lines.append(f"  the reconstruction recovers {', '.join(shares)}")
    lines.append(f"  {'the reconstruction without':<28} {'loss beside it':<26} KL beside it")
    for what, left in one.left_out.items():
        label = f"{left.latents:,} {what} latents"
        if left.effect is None:
            lines.append(f"  {label:<28} -")
        else:
            loss, kl = (part.text(sign=True) for part in left.effect)
            lines.append(f"  {label:<28} {loss:<26} {kl}")
    return lines
