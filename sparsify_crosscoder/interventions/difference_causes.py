"""Whether differences that are listed cause what their models answer otherwise.

The prompts are of texts that the list does not read, the answers are sampled for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from ..crosscoders import Crosscoder
from ..evaluation.differences import Difference, Differences
from ..harvest.families import kinship
from ..hashing import hash_json
from ..runs.answers import load_text_tokenizers
from ..runs.models import check_model, without_head
from ..runs.run import Run
from ..runs.texts import text_options
from .basis import may_share_basis
from .cause import LEAST_TEXTS, Behaviour, Cause, CauseSettings, cause
from .cause_texts import ANSWERS, ActiveTexts, own_answers, prompt_of
from .prompts import Prompt
from .steering import Steering

PROMPTS = 16
"""Of a difference, at most."""

UNTESTED = ("map", "component")
"""Kinds of which no vector at every token is what differs."""

KEPT_OUT = 4
"""Of so many prompts one is kept out of the list, with all texts that begin with it."""

SETTINGS = CauseSettings(strengths=(0.5, 1.0), chat=False)

TOKENS = 2 * PROMPTS * 2 * ANSWERS.max_new_tokens * 90
"""About what both models read for one difference: the answers of both with prompts as long, under
every strength and span, of the direction and the random ones."""


class _Trial(NamedTuple):
    """What every difference of a run is tested with."""

    models: list[Any]
    """By source."""

    tokenizer: Any
    """Of both."""

    hookpoints: list[str]
    active: ActiveTexts
    settings: CauseSettings


@dataclass(frozen=True)
class Verification:
    """Whether a difference causes what the model that has more of it answers otherwise."""

    answers: int
    """Of each model; there may be too few."""

    causes: tuple[Cause, ...]
    """The direction added to the model that has less of it, and ablated in the other."""

    @property
    def verified(self) -> bool:
        """Whether either is."""
        return any(one.verified for one in self.causes)

    @property
    def sentences(self) -> list[str]:
        """What was found, in plain words."""
        if self.causes:
            return [one.sentence() for one in self.causes]
        return [
            f"not verified: of the prompts that the list did not read, {self.answers} have it and "
            f"are answered otherwise by the two models; {LEAST_TEXTS} are needed."
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "verified": self.verified,
            "answers": self.answers,
            "sentences": self.sentences,
            "causes": [{**asdict(one), "p": one.p} for one in self.causes],
        }


def prompts_kept_out(
    run: Run, crosscoder: Crosscoder, option: str = "--verify"
) -> dict[int, Prompt]:
    """One prompt in `KEPT_OUT` of a run's texts, by the numbers of all texts that begin with it.

    Raises ValueError where no difference of the run can be verified: its models do not share a
    basis, are no language models or have changed, or its texts are not there or too few; it names
    the `option` that asks for it.
    """
    check_verifiable(run, crosscoder, option)
    texts = run.texts()
    found = {}
    for number, row in enumerate(texts):
        prompt = prompt_of(row)  # pyright: ignore[reportArgumentType]
        if prompt is not None and int(hash_json(prompt)[:8], 16) % KEPT_OUT == 0:
            found[number] = prompt
    distinct = {hash_json(prompt) for prompt in found.values()}
    if len(distinct) < LEAST_TEXTS:
        raise ValueError(
            f"{option} keeps one prompt in {KEPT_OUT} out of the list, and of the run's "
            f"{len(texts):,} texts these are {len(distinct)}; at least {LEAST_TEXTS} are needed. "
            f"Leave {option} off, or take more texts."
        )
    return found


def check_verifiable(run: Run, crosscoder: Crosscoder, option: str = "--verify") -> None:
    """Raise ValueError where directions of one of a run's models mean nothing in the other."""
    sources = crosscoder.sources
    if len(sources) != 2:
        raise ValueError(f"{option} compares two models; the run has {len(sources)}.")
    kin = kinship(*sources)
    why = None if kin.same else kin.why
    if why is None and not may_share_basis(sources, 0, 1):
        why = "they are read at other places or widths"
    if why is not None:
        raise ValueError(
            f"{option} needs two models that share tokenizer and basis, as a model and its "
            f"fine-tune do ({why}). Leave it off."
        )
    if (name := without_head(run.ends, run.config)) is not None:
        raise ValueError(
            f"{option} has both models answer, and {name} is no causal language model with a head. "
            "Leave it off."
        )
    for end in run.ends:
        check_model(end.model, end.revision, end.checkpoint)


def told_with_causes(
    run: Run,
    crosscoder: Crosscoder,
    found: Differences,
    count: int,
    kept_out: Mapping[int, Prompt],
) -> dict[str, Any]:
    """A list as `Differences.to_dict` has it, the first `count` findings that are directions with
    their "verification"; see `verify_differences`."""
    told = found.to_dict()
    directions = [one for one in found.findings if one.kind not in UNTESTED][:count]
    verified = verify_differences(run, crosscoder, directions, kept_out)
    for row in told["rows"]:
        if row["rank"] in verified:
            row["verification"] = verified[row["rank"]].to_dict()
    return told


def verify_differences(
    run: Run,
    crosscoder: Crosscoder,
    differences: Sequence[Difference],
    kept_out: Mapping[int, Prompt],
    settings: CauseSettings | None = None,
) -> dict[int, Verification]:
    """What the directions of differences cause, by the differences' ranks.

    `kept_out` are prompts that the list of differences did not read, by the numbers of their
    texts. Raises ValueError where a model cannot be loaded.
    """
    if not differences:
        return {}
    loading = run.loading(crosscoder.device)
    tokenizers = load_text_tokenizers(text_options(run.config))
    trial = _Trial(
        [loading.load_end(end)[0] for end in run.ends],
        next((t for t in reversed(tokenizers) if t.chat_template), tokenizers[-1]),
        [end.hookpoint for end in run.ends],
        ActiveTexts.of(run, crosscoder),
        settings or SETTINGS,
    )
    return {
        one.rank: _verified(one, _prompts(one, trial.active, kept_out), trial)
        for one in tqdm(differences, desc="Verifying", unit="difference")
    }


def _prompts(one: Difference, active: ActiveTexts, kept_out: Mapping[int, Prompt]) -> list[Prompt]:
    """The prompts of the texts where a difference is present, the strongest first; any of them
    for a shift of the mean."""
    numbers = list(kept_out)
    if one.latent is not None:
        alike = [member.latent for member in one.members if member.latent is not None]
        numbers = active.strongest([one.latent, *alike])
    found = {hash_json(kept_out[n]): kept_out[n] for n in numbers if n in kept_out}
    return list(found.values())[:PROMPTS]


def _verified(one: Difference, prompts: Sequence[Prompt], trial: _Trial) -> Verification:
    more, less = trial.models[one.source], trial.models[1 - one.source]
    behaviour = Behaviour([], [])
    if len(prompts) >= LEAST_TEXTS:
        behaviour = own_answers(more, less, trial.tokenizer, prompts, chat=False)
    if len(behaviour.shown) < LEAST_TEXTS:
        return Verification(len(behaviour.shown), ())
    steering = Steering(one.direction, trial.hookpoints[one.source])
    ablating = replace(steering, mode="ablate")
    tokenizer, settings = trial.tokenizer, trial.settings
    return Verification(
        len(behaviour.shown),
        (
            cause(less, tokenizer, steering, behaviour, settings),
            cause(more, tokenizer, ablating, behaviour, settings, reference=less),
        ),
    )
