"""How much of what two models expect differently their latents account for, by patching.

A model, the host, reads text while some latents are made to write in it what they write in the
other. Where both share basis and vocabulary, the KL divergence from the other should fall.
Elsewhere the host begins with the other's activations, carried over by a map, and the latents go
back to what they write in the host: the divergence from the host itself should fall.

P pairs, T tokens, D width of the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..evaluation.differences import Difference, Differences
from ..evaluation.false_exclusives import called_exclusive
from ..evaluation.filter import FilterRecord
from ..harvest.heads import Head, share_vocabulary
from ..harvest.model_identity import source_names
from ..harvest.source import Source
from ..intervals import Interval, interval_over_texts
from ..runs.models import load_run_sources
from ..runs.run import Run
from .basis import measured_identity
from .graft import ReadPairs, check_heads
from .graft_config import PatchConfig
from .graft_text import text_to_graft
from .grafting import Graft, GraftedReader, expected, sums_by_text
from .random_directions import random_directions
from .stitching import Stitching


class Restored(NamedTuple):
    """What is left of a divergence, and which share of it is gone."""

    kl: Interval
    """Nats a token."""

    share: Interval

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"kl": self.kl._asdict(), "share": self.share._asdict()}


@dataclass(frozen=True)
class PatchedLatents:
    """Latents that were patched together."""

    name: str
    latents: int
    restored: Restored


@dataclass(frozen=True)
class PatchedEntry:
    """A listed difference that was patched by itself."""

    rank: int
    kind: str
    source: int
    latents: list[int]
    """None of them for what is everywhere: then the difference along its direction is patched."""

    restored: Restored
    random: list[float]
    """Shares that random clusters of as many latents restore, or random directions."""


@dataclass(frozen=True)
class PatchedModel:
    """What patches do in one host."""

    source: int
    kl: Interval
    """The divergence without any patch, nats a token."""

    ceiling: Restored | None
    """By the whole activation of the other model, where the host is to come to the other; what is
    left after that is in other layers, or at tokens that are in no pair."""

    groups: list[PatchedLatents]
    """All latents, those exclusive to either model, shared ones that are listed as differences, and
    the others."""

    halves: list[PatchedLatents]
    """The upper half of the exclusive latents by score, and the lower."""

    gap: Interval | None
    """By how much less divergence is left by the upper half than by the lower, nats a token."""

    entries: list[PatchedEntry]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""

        def told(one: PatchedLatents | PatchedEntry) -> dict[str, Any]:
            return {**vars(one), "restored": one.restored.to_dict()}

        return {
            "source": self.source,
            "kl": self.kl._asdict(),
            "ceiling": self.ceiling.to_dict() if self.ceiling else None,
            "groups": [told(one) for one in self.groups],
            "halves": [told(one) for one in self.halves],
            "gap": self.gap._asdict() if self.gap else None,
            "entries": [told(one) for one in self.entries],
        }


@dataclass(frozen=True)
class Patched:
    """What patches do in the models of a run."""

    names: list[str]
    texts: int
    held_out: bool
    near: bool
    """Whether the models share basis and vocabulary, so that hosts are to come to the other."""

    models: list[PatchedModel]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        models = [{"name": self.names[m.source], **m.to_dict()} for m in self.models]
        facts = {"texts": self.texts, "held_out": self.held_out, "near": self.near}
        return {**facts, "models": models}

    def text(self) -> str:
        """A table for each host."""
        whose = "held out by the run" if self.held_out else "that the run trained on"
        lines = [f"{self.texts} texts {whose}; KL divergence of next tokens, nats a token."]
        for one in self.models:
            lines += ["", *_model_lines(self, one)]
        return "\n".join(lines)


def patch(
    run: Run,
    differences: Differences,
    config: PatchConfig | None = None,
    *,
    stitching: Stitching | None = None,
) -> Patched:
    """Patch latents of a run's first two models into each other, all and one difference at a time.

    `differences` are those of one of the run's crosscoders, which is used on its device. Where the
    models share no basis, `stitching` has the map. Raises ValueError where it is missing, and for
    models without heads.
    """
    config, crosscoder = config or PatchConfig(), differences.found.crosscoder
    check_heads(run)
    identity = None if stitching else measured_identity(run, crosscoder.sources, crosscoder.device)
    maps = stitching or identity
    if maps is None:
        raise ValueError(
            "The models do not share a basis, so that what latents write in one means nothing in "
            "the other. Make maps with `sparsify-crosscoder stitch RUN --out FOLDER` and name them "
            "with --stitching FOLDER."
        )
    maps.check_sources(crosscoder.sources)
    sources = load_run_sources(run.config, crosscoder.device, "on")[:2]
    text = text_to_graft(run, sources, config.texts)
    read = ReadPairs.of(run, crosscoder, sources, text)
    same_tokens = text.windows["input_ids_0"][:] == text.windows["input_ids_1"][:]
    tokenizers = [source.tokenizer for source in sources]
    near = bool(maps.report.get("identity")) and same_tokens and share_vocabulary(tokenizers)
    readers = [GraftedReader(one, s, text, read.batch_size) for s, one in enumerate(sources)]
    hosts = [_Host(s, sources, readers, read, maps.to("cpu"), near) for s in (1, 0)]
    listed = differences.findings[: config.entries]
    models = [
        _patched(host, differences, listed if host.number == 1 or not near else [], config.random)
        for host in hosts
    ]
    names = source_names(crosscoder.sources)
    return Patched(names, len(text.windows), text.held_out, near, models)


class _Host:
    """A model in which latents are made to write what they write in the other."""

    def __init__(
        self,
        number: int,
        sources: Sequence[Source],
        readers: Sequence[GraftedReader],
        read: ReadPairs,
        maps: Stitching,
        near: bool,
    ):
        self.number, self.other, self.near = number, 1 - number, near
        self.read, self.reader = read, readers[number]
        own, theirs = (read.raw[s].float().cpu() for s in (self.number, self.other))
        self._maps, carried = maps, maps.point(theirs, self.other)
        self.apart = carried - own
        """The whole difference in the host's activations, `[P, D]`."""

        self._begin, self._sign = (own, 1) if near else (carried, -1)
        head = sources[number].head
        assert head is not None
        self._head: Head = head
        target = self.other if near else number
        target_head = sources[target].head
        assert target_head is not None
        self._target = (target_head, readers[target].own)

    def latents(self, some: Tensor) -> Tensor:
        """How the host's activations change where latents write what they do in the other model,
        `[P, D]`."""
        theirs, own = (self.read.written(s, some) for s in (self.other, self.number))
        return self._maps.direction(theirs, self.other) - own

    def along(self, direction: Tensor, source: int) -> Tensor:
        """The part of the whole difference along a direction of a source, `[P, D]`."""
        return self._part(self._own(direction, source))

    def along_random(self, direction: Tensor, source: int, count: int, seed: int) -> list[Tensor]:
        """The same of random directions with the covariance of the host's activations."""
        like = self.read.raw[self.number].float().cpu()[self.read.usual]
        drawn = random_directions(self._own(direction, source), count, like=like, seed=seed)
        return [self._part(vector) for vector in drawn]

    def _own(self, direction: Tensor, source: int) -> Tensor:
        direction = direction.float().cpu()
        return direction if source == self.number else self._maps.direction(direction, source)

    def _part(self, direction: Tensor) -> Tensor:
        unit = F.normalize(direction, dim=0)
        return (self.apart @ unit)[:, None] * unit

    def divergences(self, changes: Sequence[Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """Sums over each text's tokens of the divergence without a change and with each,
        `[texts, 1 + changes]`, and how many tokens each text has."""
        nothing = Graft(self._begin, self.read.usual, 0.0 if self.near else 1.0)
        grafts = [nothing]
        grafts += [Graft(self._begin + self._sign * one, self.read.usual) for one in changes]
        states = [(self._head, self.reader.states(one)) for one in grafts]
        tokens = self.read.text.next_tokens(self.number)
        kl = expected(tokens, self._target, states).kl
        counts = sums_by_text(torch.ones(1, kl.shape[1]), tokens.texts)[:, 0]
        return sums_by_text(kl, tokens.texts), counts


def _patched(
    host: _Host, found: Differences, listed: Sequence[Difference], num_random: int
) -> PatchedModel:
    groups, halves = _groups(found, host), _halves(found, host)
    clusters = {one.rank: _latents_of(one) for one in listed}
    random = {one.rank: _random(one, clusters[one.rank], host, found, num_random) for one in listed}
    changes = [host.latents(some) for some in (*groups.values(), *halves.values())]
    ceiling = len(changes)
    changes += [host.apart] if host.near else []
    first = len(changes)
    for one in listed:
        mine = clusters[one.rank]
        own = host.latents(mine) if len(mine) else host.along(one.direction, one.source)
        changes += [own, *random[one.rank]]
    sums, counts = host.divergences(changes)
    kl = _of_totals(sums, counts, lambda s, n: s[..., 0] / n)

    def restored(change: int) -> Restored:
        left = _of_totals(sums, counts, lambda s, n: s[..., 1 + change] / n)
        share = _of_totals(sums, counts, lambda s, n: 1 - s[..., 1 + change] / s[..., 0])
        return Restored(left, share)

    names = [*groups, *halves]
    sizes = [len(some) for some in (*groups.values(), *halves.values())]
    patched = [
        PatchedLatents(name, size, restored(i))
        for i, (name, size) in enumerate(zip(names, sizes, strict=True))
    ]
    gap = None
    if halves:
        upper, lower = (1 + names.index(name) for name in halves)
        gap = _of_totals(sums, counts, lambda s, n: (s[..., lower] - s[..., upper]) / n)
    entries = []
    for one in listed:
        draws = range(first + 1, first + 1 + len(random[one.rank]))
        shares = [restored(change).share.value for change in draws]
        latents = clusters[one.rank].tolist()
        kept = restored(first)
        entries.append(PatchedEntry(one.rank, one.kind, one.source, latents, kept, shares))
        first += 1 + len(shares)
    return PatchedModel(
        host.number,
        kl,
        restored(ceiling) if host.near else None,
        patched[: len(groups)],
        patched[len(groups) :],
        gap,
        entries,
    )


def _of_totals(sums: np.ndarray, counts: np.ndarray, of: Any) -> Interval:
    """What follows from sums over texts and their numbers of tokens."""
    both = np.concatenate([sums, counts[:, None]], 1)
    return interval_over_texts(both, lambda s: of(s[..., :-1], s[..., -1]))


def _latents_of(one: Difference) -> Tensor:
    """The latents of an entry and of what shows the same."""
    own = [one.latent, *(member.latent for member in one.members)]
    numbers = dict.fromkeys(latent for latent in own if latent is not None)
    return torch.tensor(list(numbers), dtype=torch.long)


def _groups(found: Differences, host: _Host) -> dict[str, Tensor]:
    crosscoder = found.found.crosscoder
    exclusive = called_exclusive(crosscoder)
    shared = torch.ones(crosscoder.num_latents, dtype=torch.bool)
    shared[torch.cat(exclusive)] = False
    listed = torch.zeros_like(shared)
    for one in found.findings:
        listed[_latents_of(one)] = True
    groups = {
        "all latents": torch.arange(crosscoder.num_latents),
        "exclusive to it": exclusive[host.number],
        "exclusive to the other": exclusive[host.other],
        "shared, listed as differences": (shared & listed).nonzero()[:, 0],
        "shared, not listed": (shared & ~listed).nonzero()[:, 0],
    }
    return {name: latents for name, latents in groups.items() if len(latents)}


def _halves(found: Differences, host: _Host) -> dict[str, Tensor]:
    """The exclusive latents that fire here in two halves: by the score of the difference that they
    are in, then by that of the filter."""
    record = FilterRecord.of(found.to_dict())
    alive = torch.cat(called_exclusive(found.found.crosscoder))
    alive = alive[host.read.firings()[alive] > 0].tolist()
    listed, judged = record.listed, record.latents
    scores = {one: (listed.get(one, 0.0), judged[one].score) for one in alive if one in judged}
    ranked = sorted(scores, key=lambda latent: scores[latent], reverse=True)
    half = len(ranked) // 2
    if not half:
        return {}
    return {
        "upper half of the exclusive": torch.tensor(ranked[:half]),
        "lower half of the exclusive": torch.tensor(ranked[-half:]),
    }


def _random(
    one: Difference, latents: Tensor, host: _Host, found: Differences, count: int
) -> list[Tensor]:
    """Changes by as many random latents, exclusive ones beside an exclusive one, that fire here; of
    what has no latents, changes along random directions."""
    if not len(latents):
        return host.along_random(one.direction, one.source, count, one.rank)
    crosscoder = found.found.crosscoder
    fires = host.read.firings() > 0
    fires[latents] = False
    exclusive = torch.zeros(crosscoder.num_latents, dtype=torch.bool)
    exclusive[torch.cat(called_exclusive(crosscoder))] = True
    alike = fires & (exclusive == exclusive[latents[0]])
    pool = (alike if int(alike.sum()) >= len(latents) else fires).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(one.rank)
    draws = [torch.randperm(len(pool), generator=generator)[: len(latents)] for _ in range(count)]
    return [host.latents(pool[draw]) for draw in draws]


def _model_lines(found: Patched, one: PatchedModel) -> list[str]:
    host, other = found.names[one.source], found.names[1 - one.source]
    if found.near:
        lines = [f"{host}, in which latents write what they do in {other}: KL({other} || {host})"]
    else:
        lines = [
            f"{host} with {other}'s activations, carried over by the map, in which latents write "
            f"what they do in {host}: KL from {host} as it is"
        ]
    form = "  {:<38} {:<24} {}"
    lines.append(form.format("", "KL", "restored"))
    lines.append(form.format("nothing patched", one.kl.text(4), "-"))
    rows: list[tuple[str, Restored]] = []
    if one.ceiling is not None:
        rows.append(("the whole difference at this layer", one.ceiling))
    rows += [(f"{p.name} ({p.latents:,})", p.restored) for p in (*one.groups, *one.halves)]
    lines += [form.format(name, r.kl.text(4), _percent(r.share)) for name, r in rows]
    if one.gap is not None:
        lines.append(f"  the upper half leaves {one.gap.text(4, sign=True)} less than the lower")
    for entry in one.entries:
        what = f"{len(entry.latents)} latents" if entry.latents else "its direction"
        label = f"difference {entry.rank} ({entry.kind}, {what})"
        row = form.format(label, entry.restored.kl.text(4), _percent(entry.restored.share))
        shares = ", ".join(f"{share:.1%}" for share in entry.random)
        lines.append(row + (f"; random: {shares}" if shares else ""))
    return lines


def _percent(one: Interval) -> str:
    return f"{one.value:.1%} ({one.low:.1%} to {one.high:.1%})"
