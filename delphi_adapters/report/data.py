"""What a report is made of: plain values, filled from an audit's folder.

Texts are those of models and corpora, whole and as they are; whatever shows them makes them
harmless.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..clients.judge import NO_JUDGE

if TYPE_CHECKING:
    from pyarrow import Table

    from sparsify_crosscoder.evaluation.baselines.beside import BaselinesBeside
    from sparsify_crosscoder.evaluation.planted_recall import PlantedRecall
    from sparsify_crosscoder.interventions.equivalence_found import Equivalences

    from ..explaining.categories import CategoryCount
    from ..explaining.summary import SimilarSummary

Question = Literal["interpretability", "similarity", "similarity, blinded"]


@dataclass
class Context:
    """A passage on which a latent is strongly active."""

    activation: float
    """The largest in the passage, in normalised units."""

    text_id: int | None
    """Number of the text that it is from; None if that is not known."""

    tokens: list[list[str]]
    """The passage in every source's own tokens, which may be of other numbers; once where all read
    the same."""

    activations: list[list[float]]
    """Of every source's tokens, as `tokens`; 0 where the latent is silent."""

    said: str = ""
    """Who said the strongest token in a conversation, and which model wrote it."""


@dataclass
class SteeredOutputs:
    """What two models answer while a direction is added to them."""

    prompts: list[str]
    """P prompts."""

    strengths: list[float]
    """K strengths, multiples of the latent's largest activation (B.5)."""

    models: list[str]
    """Two names: the model that the direction is from, and the one that it is carried over to."""

    answers: list[list[list[str]]]
    """`[model][prompt][strength]`."""

    note: str = ""
    """What of them is left out, and why."""


@dataclass
class Judgement:
    """What the judge said to one question about one prompt's answers."""

    question: Question
    """"similarity, blinded" is the one in which the judge was not told which model is which."""

    prompt: str
    """The prompt that was answered."""

    score: int | None
    """1 to 5; None unless the status is "ok"."""

    reason: str | None
    """The judge's, if it gave one."""

    status: str
    """"ok", "unparsable" or "failed"."""


@dataclass
class Curve:
    """How strongly a behaviour shows by the strength of steering."""

    model: str
    """The model that was steered."""

    dimension: str
    """What was rated."""

    strengths: list[float]
    """K strengths, ascending."""

    mean: list[float]
    """Mean rating at each strength."""

    low: list[float] | None = None
    """Lower ends of confidence intervals, or None."""

    high: list[float] | None = None
    """Upper ends, or None."""


@dataclass
class Duplicate:
    """A latent that is active where another one is."""

    latent: int
    """The other one's index."""

    source: int | None
    """The source that the other one is exclusive to; None if it is shared."""

    correlation: float
    """Of the two latents' activations."""


@dataclass
class FeatureDetail:
    """What the page of one latent shows beyond its row in the table."""

    latent: int
    """Index in the crosscoder."""

    contexts: list[Context] = field(default_factory=list)
    """The strongest first."""

    outputs: SteeredOutputs | None = None
    """None if it was not steered with."""

    judgements: list[Judgement] = field(default_factory=list)
    """Of its exclusivity score, in order."""

    curves: list[Curve] = field(default_factory=list)
    """Dose and response; none if that was not measured."""

    duplicates: list[Duplicate] = field(default_factory=list)
    """Latents that fire together with it."""

    filter: dict[str, Any] = field(default_factory=dict)
    """What the false-exclusive filter measured of it, a row of `FilteredLatents.rows`."""

    flag_raw: str | None = None
    """The judge's whole answer on whether it matters for an audit."""


@dataclass
class NullRate:
    """How often something is found where nothing is to be found."""

    what: str
    """What was compared with what, and what was counted."""

    count: int
    """How many were found."""

    of: int
    """How many could have been."""


@dataclass(frozen=True)
class Searched:
    """What was searched for differences."""

    texts: int
    """Texts that were looked at."""

    mean_kl: float | None
    """How far the models' next tokens differ anywhere, in nats (KL), if known."""

    untold: dict[int, float] = field(default_factory=dict)
    """Of sources that share no basis, the share of their variance that the others do not tell."""


@dataclass
class ReportData:
    """All that a report says.

    Raises ValueError where parts do not fit together.
    """

    title: str
    """Heading of the report."""

    created: str
    """Date and time, as they are to be shown."""

    models: list[dict[str, Any]]
    """`name`, `hookpoint` and `width` of every source, in order."""

    summary: dict[str, Any]
    """The run folder's summary.json."""

    judge: dict[str, Any]
    """`name` ("none" if nobody was asked), `provider`, `offline` (whether it is a model on the own
    machine), `cost` in dollars (None if unknown) and `requests`."""

    features: Table
    """A row per latent with the columns of `features.COLUMNS`."""

    details: Callable[[int], FeatureDetail | None]
    """Of one latent, read when it is asked for; None if there is nothing."""

    detailed: list[int]
    """Latents to ask `details` for."""

    compared: list[int] = field(default_factory=list)
    """Shared latents that were explained only to compare with them."""

    categories: dict[str, list[CategoryCount]] = field(default_factory=dict)
    """By source."""

    nulls: list[NullRate] = field(default_factory=list)
    """Rates at which a model differs from itself."""

    null_scores: list[dict[str, Any]] = field(default_factory=list)
    """Exclusivity of what is not exclusive: `name`, `kind` ("shared" or "random"), `source`,
    `status`, `score`, `blinded_score`, `spread`, `interpretability` and `interpretable`, whether it
    passed the detection test (None if not asked); without a judge `likeness`, `likeness_spread` and
    `effect`."""

    stitching: dict[str, Any] = field(default_factory=dict)
    """`Stitching.report`: `directions` with `from`, `to`, `r2`, `r2_closed_form` and, if known,
    `r2_without_top5`, on held-out pairs; of models that share a basis `identity` and its `r2`.
    Empty if nothing was stitched."""

    filter: dict[str, Any] = field(default_factory=dict)
    """`verdicts`: how many latents have each verdict, per source, as `filter` counts them."""

    differences: list[dict[str, Any]] = field(default_factory=list)
    """What differs, the highest score first, as `Difference.to_dict` of `filter`."""

    searched: Searched | None = None
    """None by a filter of an earlier version, which had no list of differences."""

    baselines: BaselinesBeside | None = None
    """What the simplest methods see, and the list of differences beside it, if they were asked."""

    grafted: dict[str, Any] = field(default_factory=dict)
    """What the models lose by the reconstruction, as `Grafted.to_dict`; empty if not measured."""

    patched: dict[str, Any] = field(default_factory=dict)
    """Which share of near-equal models' divergence latents restore, as `Patched.to_dict`; empty if
    not measured."""

    shared_effects: Equivalences | None = None
    """What ablating shared latents does to both models; None if not measured."""

    power: PlantedRecall | None = None
    """What the list has of differences that were planted into the pair; None if none were."""

    stability: dict[str, Any] | None = None
    """What `sparsify-crosscoder stability --json` wrote; None if only one run was looked at."""

    similar: list[SimilarSummary] = field(default_factory=list)
    """Explanations that are alike, of each two sources."""

    provenance: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By stage: `hash` of its inputs, `seconds`, `options`."""

    warnings: list[str] = field(default_factory=list)
    """What a reader must know first."""

    @property
    def lists_nothing(self) -> bool:
        """Whether differences were searched for, and no finding was listed."""
        return self.searched is not None and not any(row["finding"] for row in self.differences)

    @property
    def judged(self) -> bool:
        """Whether a judge was asked."""
        return self.judge.get("name") != NO_JUDGE

    def __post_init__(self) -> None:
        from ..explaining.features import COLUMNS

        missing = [name for name in COLUMNS if name not in self.features.schema.names]
        if missing:
            raise ValueError(
                f"The table of features lacks {', '.join(missing)}: make it with `features`."
            )
        if not self.models:
            raise ValueError("A report needs the name of every model; `models` is empty.")
        known = set(self.features["latent"].to_pylist())
        strange = sorted(set(self.detailed) - known)
        if strange:
            raise ValueError(f"Latents {strange[:5]} have details but no row in the table.")
