"""Where in the list of what differs the behaviour of an organism is.

E places where something is present, C columns (latents or directions), N pairs, T texts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from organism_runs import Harvest
from organism_settings import Case
from organism_texts import Written, concerned_pairs
from organism_trigger import asked, isolation, moves_isolation
from torch import Tensor

from sparsify_crosscoder import Run, list_differences
from sparsify_crosscoder.evaluation.difference_moves import moves_along
from sparsify_crosscoder.evaluation.differences import (
    Difference,
    Differences,
    told_by_next_tokens,
)
from sparsify_crosscoder.evaluation.false_exclusives import FilterConfig
from sparsify_crosscoder.evaluation.latent_shifts import CodedPairs

PRECISION = 0.8
RECALL = 0.1


@dataclass(frozen=True)
class ConcernedPairs:
    """Which pairs concern a behaviour."""

    concern: Tensor
    """Whether each does, boolean `[N]`."""

    text: Tensor
    """Text of each, numbered from 0, `[N]`."""

    @property
    def texts(self) -> int:
        return int(self.text.max()) + 1


@dataclass(frozen=True)
class Concern:
    """How far columns concern a behaviour, `[C]` each."""

    precision: Tensor
    """Share of the pairs on which it is present that concern the behaviour."""

    recall: Tensor
    """Share of the texts with such pairs in which it is present on one."""

    present: Tensor
    """Whether it is present anywhere."""

    @property
    def right(self) -> Tensor:
        """Whether it concerns the behaviour."""
        return (self.precision >= PRECISION) & (self.recall >= RECALL)

    @classmethod
    def of(cls, columns: Tensor, pairs: Tensor, count: int, concerns: ConcernedPairs) -> Concern:
        """Of `count` columns that are present at places `[E]`, given by column and pair."""
        firings = columns.bincount(minlength=count)
        here = concerns.concern[pairs]
        right = columns.bincount(here.double(), minlength=count)
        texts = concerns.texts
        cells = (columns * texts + concerns.text[pairs])[here].unique()
        seen = (cells // texts).bincount(minlength=count)
        of = concerns.text[concerns.concern].unique().numel()
        return cls(right / firings.clamp_min(1), seen / max(of, 1), firings > 0)

    @classmethod
    def of_latents(cls, found: CodedPairs, concerns: ConcernedPairs) -> Concern:
        """Of all latents of a crosscoder and what is behind them, on the pairs that were read."""
        count = len(found.level)
        _, columns, rows = found.entries(torch.arange(count))
        return cls.of(columns, rows, count, concerns)


@dataclass(frozen=True)
class Row:
    """A line of the table: one crosscoder and its list of what differs."""

    organism: str
    pair: str
    text: str
    architecture: str
    seed: int
    rank: int | None
    """Among the findings, of the first that concerns the behaviour; where none does, of the first
    among all entries; None where none of these does."""

    listed: bool
    """Whether it is a finding, which the tool lists by default."""

    kind: str | None
    score: float | None
    precision: float | None
    recall: float | None
    findings: int
    entries: int
    chance: float
    """Share of all latents that are present that concern the behaviour: a random entry."""

    concerned: float
    """Share of the pairs that concern the behaviour."""

    fve: float | None
    isolation: float | None
    """AUROC of the first entry's activation, trigger against near misses, where there are some."""

    seconds: float
    error_ratio: float | None = None
    """Latent scaling's ratio of errors of the first entry, where it is an exclusive latent."""

    reconstruction_ratio: float | None = None
    error_ratios: list[float] = field(default_factory=list)
    """Of all exclusive latents."""

    reconstruction_ratios: list[float] = field(default_factory=list)
    latent: int | None = None
    """Of that entry; not in rows of earlier versions."""

    tested: int = 0
    """What could have been in the list; 0 in rows of earlier versions, which have no scores."""

    scores: list[float] = field(default_factory=list)
    """Of the entries that next tokens tell of, which alone can be findings."""

    concerning: list[bool] = field(default_factory=list)
    """Which of these concern the behaviour."""

    found: list[bool] = field(default_factory=list)
    """Which of these are findings."""

    moves_isolation: float | None = None
    """As `isolation`, of how far the difference moves along the first entry; not in rows of earlier
    versions."""

    prompt_isolation: float | None = None
    """The same before the answer."""


def row_of(case: Case, harvest: Harvest, run: Run, architecture: str, seed: int) -> Row:
    """What a trained crosscoder lists of a case."""
    begun = time.perf_counter()
    config = FilterConfig(outlier_multiple=run.config.outlier_multiple)
    listed = list_differences(run, config, reference=harvest.reference)
    found = listed.found
    texts = [harvest.texts[number] for number in found.pairs.texts.unique().tolist()]
    ends = found.pairs.ends
    assert ends is not None
    concerns = ConcernedPairs(concerned_pairs(case.organism, texts, found.texts, ends), found.texts)
    measured = Concern.of_latents(found, concerns)
    first, rank = _first(listed, measured)
    column = None if first is None else listed.column(first)
    entry = first or (_strongest(listed) if listed.entries else None)
    shown = None if entry is None else listed.column(entry)
    far, before = _by_moves(case, texts, listed, entry)
    ratios = _scaling(listed)
    error, reconstruction = ratios.get(first.latent if first else None, (None, None))
    summary, config = run.summary(), listed.config
    heard = [one for one in listed.entries if told_by_next_tokens(one.kl, config)]
    columns = [listed.column(one) for one in heard]
    return Row(
        **case.label,
        architecture=architecture,
        seed=seed,
        rank=rank,
        listed=first is not None and first.finding,
        kind=first.kind if first else None,
        score=first.score if first else None,
        precision=None if column is None else float(measured.precision[column]),
        recall=None if column is None else float(measured.recall[column]),
        findings=len(listed.findings),
        entries=len(listed.entries),
        chance=float(measured.right.sum() / measured.present.sum().clamp_min(1)),
        concerned=float(concerns.concern.double().mean()),
        fve=summary.fve,
        isolation=_isolation(case, texts, found, shown),
        seconds=summary.wall_seconds + time.perf_counter() - begun,
        error_ratio=error,
        reconstruction_ratio=reconstruction,
        error_ratios=[one for one, _ in ratios.values()],
        reconstruction_ratios=[one for _, one in ratios.values()],
        latent=first.latent if first else None,
        tested=listed.tested,
        scores=[one.score for one in heard],
        found=[one.finding for one in heard],
        concerning=[c is not None and bool(measured.right[c]) for c in columns],
        moves_isolation=far,
        prompt_isolation=before,
    )


def _scaling(listed: Differences) -> dict[int | None, tuple[float, float]]:
    """Latent scaling's ratios of the exclusive latents that have them, errors first."""
    kinds = ("scaling_error_ratio", "scaling_reconstruction_ratio")
    found = {
        row["latent"]: tuple(row[kind] for kind in kinds) for row in listed.filtered.judged.rows()
    }
    return {
        latent: (float(a), float(b))
        for latent, (a, b) in found.items()
        if a is not None and b is not None and math.isfinite(a) and math.isfinite(b)
    }


def _first(listed: Differences, measured: Concern) -> tuple[Difference | None, int | None]:
    """The first finding, or else the first entry, that concerns the behaviour, and its place."""
    for shown in (listed.findings, listed.entries):
        for rank, entry in enumerate(shown, 1):
            column = listed.column(entry)
            if column is not None and measured.right[column]:
                return entry, rank
    return None, None


def _strongest(listed: Differences) -> Difference:
    """The first entry that is somewhere and not everywhere, if there is one."""
    somewhere = (entry for entry in listed.entries if listed.column(entry) is not None)
    return next(somewhere, listed.entries[0])


def _by_moves(
    case: Case, texts: Sequence[Written], listed: Differences, entry: Difference | None
) -> tuple[float | None, float | None]:
    """The trigger told by how far pairs move along an entry, anywhere and before the answers."""
    if entry is None:
        return None, None
    along, of_pair = moves_along(listed, entry), listed.found.texts
    anywhere = moves_isolation(case.organism, texts, along, of_pair)
    prompt = asked(listed.found.pairs.roles)
    if anywhere is None or prompt is None:
        return anywhere, None
    return anywhere, moves_isolation(case.organism, texts, along[prompt], of_pair[prompt])


def _isolation(
    case: Case, texts: Sequence[Written], found: CodedPairs, column: int | None
) -> float | None:
    if column is None:
        return None
    activations, _, rows = found.entries(torch.tensor([column]))
    return isolation(case.organism, texts, activations, found.texts[rows])
