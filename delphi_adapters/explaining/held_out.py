"""Detection on passages that the explanation was not written from, which are weaker ones.

```
results_dir/
    held_out/<latent>.json    a HeldOut
```

The explanation is of a latent's ten strongest passages, and the paper's detection score is of the
same ten (B.4.1, B.4.4): a latent may be something else where it is weaker, and still score 1.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd
from pathlib import Path

from ..delphi import compat  # noqa: F401

# isort: split
from delphi.latents import ActivatingExample, LatentRecord

from ..judging.results import ResultKind
from .interpretability import InterpretabilityFilter, detection_accuracy

PASSAGES = 10
"""Of the next ranks, and of all weaker ones."""

_NEXT, _WEAKER = 0, 1  # delphi's `quantile` of a passage, which outputs have as their distance


@dataclass(frozen=True)
class HeldOut:
    """What a judge told apart by an explanation of a latent's strongest passages."""

    next_ranks: float | None
    """Accuracy over the passages of ranks 11 to 20 among silent ones, unanswered ones wrong."""

    quantiles: float | None = None
    """The same over ten of all weaker passages, one of each tenth of them; None where there are
    fewer."""

    n_unanswered: int = 0
    not_scorable: str | None = None
    """Why there is no score."""

    @property
    def final(self) -> bool:
        """Whether asking again is of no use: False where the judge answered for no passage."""
        return self.next_ranks is not None or not self.n_unanswered


def kept_passages(
    examples: Sequence[ActivatingExample], n_top: int, latent: object
) -> list[ActivatingExample]:
    """The passages of a latent that both tests show, the strongest first.

    These are the first `n_top`, the next ten, and one of each tenth of the rest.
    """
    ordered = sorted(examples, key=lambda one: one.max_activation, reverse=True)
    begin = n_top + PASSAGES
    size = len(ordered[begin:]) // PASSAGES
    if not size:
        return ordered[:begin]
    rng = random.Random(f"quantiles {latent}")
    places = [begin + part * size + rng.randrange(size) for part in range(PASSAGES)]
    return [*ordered[:begin], *(ordered[place] for place in places)]


async def held_out_detection(test: InterpretabilityFilter, record: LatentRecord) -> HeldOut:
    """Ask the judge of a detection test about weaker passages, of which the record has those of
    `kept_passages`, among the silent ones of that test."""
    if (problem := test.problem(record)) is not None:
        return HeldOut(None, not_scorable=problem)
    weaker = kept_passages(record.examples, test.n_top, record.latent)[test.n_top :]
    if len(weaker) < PASSAGES:
        found = f"{test.n_top + len(weaker)} activating examples"
        return HeldOut(None, not_scorable=f"{found}, fewer than the {test.n_top + PASSAGES} needed")
    shown = [
        replace(one, quantile=_NEXT if place < PASSAGES else _WEAKER)
        for place, one in enumerate(weaker)
    ]
    at_once = gcd(test.n_examples_shown, len(shown) + test.n_random)
    rng = random.Random(f"{test.seed} held out {record.latent}")
    outputs = await test.classified(record, shown, rng, at_once)
    unanswered = sum(one.prediction is None for one in outputs)
    if unanswered == len(outputs):
        why = f"the judge answered for none of the {len(outputs)} examples"
        return HeldOut(None, n_unanswered=unanswered, not_scorable=why)
    of_next, of_weaker = (
        [one for one in outputs if not one.activating or one.distance == kind]
        for kind in (_NEXT, _WEAKER)
    )
    return HeldOut(
        detection_accuracy(of_next).accuracy,
        detection_accuracy(of_weaker).accuracy if len(shown) > PASSAGES else None,
        unanswered,
    )


@dataclass(frozen=True)
class _Kept:
    """A file: a `HeldOut` behind its latent's name."""

    latent: str
    next_ranks: float | None
    quantiles: float | None = None
    n_unanswered: int = 0
    not_scorable: str | None = None


_KEPT = ResultKind("held_out", _Kept, "a held-out score")


def save(found: HeldOut, name: str, results_dir: str | Path) -> None:
    """Write what was found of a latent below `results_dir`, whole or not at all."""
    _KEPT.save(results_dir, name, _Kept(name, **vars(found)))


def load(results_dir: str | Path) -> dict[str, HeldOut]:
    """All that `save` wrote below `results_dir`, by the latent's name.

    Raises FileNotFoundError where the folder is missing, ValueError for a file that is none.
    """
    return {
        one.latent: HeldOut(one.next_ranks, one.quantiles, one.n_unanswered, one.not_scorable)
        for one in _KEPT.load_all(results_dir)
    }
