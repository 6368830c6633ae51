"""What the simplest methods say of the same pairs.

N pairs, D width, T texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from organism_runs import Harvest
from organism_scores import Concern, ConcernedPairs
from organism_settings import Case, Scale
from organism_texts import Written, concerned, concerned_pairs
from organism_trigger import asked, auroc, isolation, moves_isolation
from torch import Tensor

from sparsify_crosscoder.evaluation.baselines.coder import CoderConfig, difference_coder
from sparsify_crosscoder.evaluation.noted_pairs import stored_pairs
from sparsify_crosscoder.scorability import FILTER_PAIRS
from sparsify_crosscoder.store.normalization import within_norm

COMPONENTS = 10
FAR = 3.0
"""Standard deviations from which a component is present."""


@dataclass(frozen=True)
class Baseline:
    """What one method says of a case; what it does not give is None."""

    organism: str
    pair: str
    text: str
    method: str
    auc: float | None = None
    """Of methods that rank texts: of those that concern the behaviour against the others."""

    precision_at_10: float | None = None
    rank: int | None = None
    """Of methods that list directions: of the first that concerns the behaviour."""

    precision: float | None = None
    recall: float | None = None
    isolation: float | None = None
    """As of a crosscoder's first entry: of an activation, or of how far a component is out."""

    prompt_isolation: float | None = None
    """The same before the answer."""


@dataclass(frozen=True)
class _Pairs:
    """Pairs without outliers."""

    activations: list[Tensor]
    """`[N, D]` per source."""

    text: Tensor
    """Text of each, numbered from 0, `[N]`."""

    texts: list[Written]
    ends: Tensor
    """The character of its text behind which each ends, `[N]`."""
    kl: Tensor | None
    """`[N]`, nats, if known."""

    prompt: Tensor
    """Whether each is before the answer, `[N]`; all where nobody answers."""

    def mean_by_text(self, values: Tensor) -> Tensor:
        """Means `[T]` of values `[N]`."""
        return self.text.bincount(values.double()) / self.text.bincount()


def baselines(case: Case, harvest: Harvest) -> list[Baseline]:
    """All that there is to say of a case without a crosscoder."""
    pairs = _pairs(harvest)
    concerns = concerned(case.organism, pairs.texts)
    found = [_ranked(case, name, values, concerns) for name, values in _by_text(case, pairs)]
    if case.pair == "base":
        difference = pairs.activations[1] - pairs.activations[0]
        here = ConcernedPairs(
            concerned_pairs(case.organism, pairs.texts, pairs.text, pairs.ends), pairs.text
        )
        found += [_components(case, difference, pairs, here)]
        found += [_sae(case, difference, pairs, here)]
    return found


def _pairs(harvest: Harvest) -> _Pairs:
    noted = stored_pairs(harvest.store, FILTER_PAIRS)
    raw = [x.float() for x in noted.read(noted.numbers)]
    kept = within_norm(raw, 2.0)
    assert noted.ends is not None
    prompt = asked(noted.roles)
    numbers, text = noted.texts[kept].unique(return_inverse=True)
    return _Pairs(
        [x[kept] for x in raw],
        text,
        [harvest.texts[number] for number in numbers.tolist()],
        noted.ends[kept],
        None if noted.kl is None else noted.kl[kept],
        torch.ones_like(text, dtype=torch.bool) if prompt is None else prompt[kept],
    )


def _by_text(case: Case, pairs: _Pairs) -> Iterator[tuple[str, Tensor]]:
    """Scores of texts `[T]`, by the method's name."""
    if pairs.kl is not None:
        yield "mean KL", pairs.mean_by_text(pairs.kl)
    if case.pair == "base":
        first, second = pairs.activations
        yield "mean |B - A|", pairs.mean_by_text((second - first).norm(dim=1) / first.norm(dim=1))


def _ranked(case: Case, method: str, values: Tensor, concerns: Tensor) -> Baseline:
    area = None
    if concerns.any() and not concerns.all():
        area = auroc(values[concerns], values[~concerns])
    top = values.topk(min(10, len(values))).indices
    return Baseline(
        **case.label,
        method=method,
        auc=area,
        precision_at_10=float(concerns[top].double().mean()),
    )


def _components(
    case: Case, difference: Tensor, pairs: _Pairs, concerns: ConcernedPairs
) -> Baseline:
    """Principal components, present on either side where they are far out."""
    centred = difference - difference.mean(0)
    _, directions = torch.linalg.eigh(centred.T @ centred)
    count = min(COMPONENTS, directions.shape[1])
    along = centred @ directions.flip(1)[:, :count]
    along = along / along.std(0)
    rows, columns = torch.cat([along > FAR, along < -FAR], 1).nonzero().T
    measured = Concern.of(columns, rows, 2 * count, concerns)
    found = measured.right.nonzero()[:, 0].tolist()
    first = min(found, key=lambda column: column % count, default=None)
    if first is None:
        return Baseline(**case.label, method="PCA of B - A")
    far = along[:, first] if first < count else -along[:, first - count]
    return Baseline(
        **case.label,
        method="PCA of B - A",
        rank=first % count + 1,
        precision=float(measured.precision[first]),
        recall=float(measured.recall[first]),
        isolation=moves_isolation(case.organism, pairs.texts, far, pairs.text),
        prompt_isolation=moves_isolation(
            case.organism, pairs.texts, far[pairs.prompt], pairs.text[pairs.prompt]
        ),
    )


def coder_of(scale: Scale) -> CoderConfig:
    """An autoencoder as large as the crosscoders, and trained as long."""
    return CoderConfig(scale.latents, scale.k, scale.steps, scale.pairs_per_step, lr=1e-3)


def _sae(case: Case, difference: Tensor, pairs: _Pairs, concerns: ConcernedPairs) -> Baseline:
    """A BatchTopK autoencoder of the difference, its latents ranked by energy."""
    found = difference_coder(lambda n: difference[n], len(difference), coder_of(case.bench.scale))
    places = pairs.text[found.pairs]
    measured = Concern.of(found.latents, found.pairs, case.bench.scale.latents, concerns)
    rank = next((i for i, latent in enumerate(found.order, 1) if measured.right[latent]), None)
    latent = found.order[(rank or 1) - 1]
    here = found.latents == latent
    before = here & pairs.prompt[found.pairs]
    return Baseline(
        **case.label,
        method="SAE of B - A",
        rank=rank,
        precision=float(measured.precision[latent]) if rank else None,
        recall=float(measured.recall[latent]) if rank else None,
        isolation=isolation(case.organism, pairs.texts, found.activations[here], places[here]),
        prompt_isolation=isolation(
            case.organism, pairs.texts, found.activations[before], places[before]
        ),
    )
