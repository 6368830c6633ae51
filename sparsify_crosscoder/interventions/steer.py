"""Steering the models of latents or vectors at several strengths, and what it changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ..crosscoders.shared_basis import LEAST_R2
from ..harvest.model_identity import checkpoint_digest, same_model, short_names
from ..harvest.sources import load_fast_tokenizer
from ..runs.models import Loading
from .basis import identity_line, identity_r2
from .coherence import Coherence, CoherenceTest, coherent_strength
from .effects import DoseResponse, dose_response
from .generation import PROMPTS, STRENGTHS, Answering, Sampling
from .likeness import Changes, Likeness, common_words, likeness, word_changes
from .targets import Target, with_backend

_SHOWN = 100


@dataclass(frozen=True)
class SteeringTest:
    """What steered models are asked, and what of their answers is followed."""

    prompts: Sequence[str] = PROMPTS
    strengths: Sequence[float] = STRENGTHS
    words: Sequence[str] = ()
    """Words whose probability to follow."""

    sampling: Sampling = Sampling()
    chat: bool | None = None
    """Whether prompts are a user's messages; None: where there is a chat template."""

    batch_size: int | None = None
    backend: str = "auto"
    """auto, nnsight or hooks."""

    coherent: CoherenceTest | None = None
    """If given, strengths are as many, from 0 to where answers are no text any more."""


@dataclass(frozen=True)
class Response:
    """What one model does when it is steered."""

    target: Target
    name: str
    """What the model is called, unlike the others."""

    found: DoseResponse
    changes: list[Changes] | None
    """What each strength does to the next words that all models know, of several models."""

    note: str | None
    """Why a vector of another model serves in this one, where it does."""

    coherence: Coherence | None = None
    """Where the strengths end, if that was asked."""

    def to_dict(self) -> dict[str, Any]:
        steering = [
            {
                "label": s.label,
                "hookpoint": s.hookpoint,
                "scale": s.scale,
                "norm": float(s.vector.norm()),
                "mode": s.mode,
                "tokens": s.tokens,
            }
            for s in self.target.steering
        ]
        told = {"model": self.target.name, "steering": steering, **self.found.to_dict()}
        return told if self.coherence is None else {**told, "coherence": asdict(self.coherence)}

    def text(self) -> str:
        """The answers, shortened, and the dose-response table."""
        what = " + ".join(
            f"{s.label or 'vector'} at {s.hookpoint} ({s.mode}, |vector| {s.vector.norm():.3g} x "
            f"{s.scale:.3g})"
            for s in self.target.steering
        )
        lines = [] if self.note is None else [self.note]
        lines.append(f"\n{self.name}: {what}")
        lines += [] if self.coherence is None else [f"  {self.coherence.text()}"]
        for answers in self.found.generations.answers:
            lines.append(f"\n  {answers[0].prompt!r}")
            for answer in answers:
                text = answer.text.replace("\n", "⏎")
                text = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
                lines.append(f"  {_dose(answer.strengths):>6}  {text}")
        lines.append(f"\n{self.found.table()}")
        left_out = self.found.words_left_out
        if left_out:
            lines.append(f"not single tokens, so without a probability: {', '.join(left_out)}")
        return "\n".join(lines)


def steer(targets: Sequence[Target], test: SteeringTest, loading: Loading) -> Iterator[Response]:
    """Steer one model after the other, and measure what that changes.

    Raises ValueError for a model that is another now, and for directions that do not fit it.
    """
    words = _common_words(targets, loading) if len(targets) > 1 else None
    names = short_names([target.name for target in targets])
    for number, target in enumerate(targets):
        model, tokenizer = loading.load(target.name, target.revision, target.checkpoint)
        note = _shared_basis(target, model, tokenizer, loading)
        steered = with_backend(model, tokenizer, test.backend)
        answering = Answering(test.chat, test.batch_size, show_progress=True)
        coherence, strengths = None, test.strengths
        if test.coherent is not None:
            coherence = coherent_strength(
                steered,
                test.prompts,
                target.steering,
                test.sampling,
                test.coherent,
                tokenizer=tokenizer,
                answering=answering,
            )
            strengths = coherence.doses(len(strengths))
        found = dose_response(
            steered,
            test.prompts,
            target.steering,
            strengths,
            test.words,
            test.sampling,
            tokenizer=tokenizer,
            answering=answering,
        )
        changes = None
        if words is not None:
            place = (model, tokenizer, test.prompts, target.steering)
            changes = [
                word_changes(*place, dose, words[number], chat=test.chat)
                for dose in found.strengths
            ]
        del model
        yield Response(target, names[number], found, changes, note, coherence)


def _shared_basis(target: Target, model: Any, tokenizer: Any, loading: Loading) -> str | None:
    """Why a vector of another model serves in this one; raises ValueError if it does not."""
    vector = target.made_in
    if vector is None:
        return None
    own = vector.model
    if same_model(
        {"name": own, "checkpoint": vector.checkpoint},
        {"name": target.name, "checkpoint": checkpoint_digest(target.name)},
    ):
        return None
    if target.same_basis:
        return identity_line(own, target.name, None)
    try:
        others, tokenizers = loading.load(own, vector.revision, vector.checkpoint)
    except ValueError:
        return (
            f"{own} is not there any more as it was; the vector is used in {target.name} as it is."
        )
    try:
        r2 = min(
            identity_r2((others, model), (tokenizers, tokenizer), one.hookpoint, PROMPTS)
            for one in target.steering
        )
        if r2 < LEAST_R2:
            raise ValueError(f"the identity has an R2 of {r2:.2f}")
    except ValueError as error:
        raise ValueError(
            f"The vector is of {own}, and {target.name} does not share its basis ({error}), so it "
            "means nothing there. Carry it over with `sparsify-crosscoder transfer RUN VECTOR`, "
            "or use it as it is with --map identity."
        ) from error
    return identity_line(own, target.name, r2)


def _common_words(targets: Sequence[Target], loading: Loading) -> tuple[Tensor, Tensor]:
    return common_words(
        *(
            load_fast_tokenizer(
                target.name,
                revision=target.revision,
                token=loading.token,
                trust_remote_code=loading.trust_remote_code,
            )
            for target in targets
        )
    )


@dataclass(frozen=True)
class DoseLikeness:
    """How like one model's change of its next words is to the other's, at one dose."""

    strengths: list[float]
    likeness: Likeness

    def to_dict(self) -> dict[str, Any]:
        return {"strengths": self.strengths, **asdict(self.likeness)}


def likeness_by_dose(first: Response, second: Response) -> list[DoseLikeness]:
    """The likeness of two models' responses to the same strengths."""
    assert first.changes is not None and second.changes is not None
    rows = first.found.to_dict()["rows"]
    return [
        DoseLikeness(row["strengths"], likeness(a, b))
        for row, a, b in zip(rows, first.changes, second.changes, strict=True)
    ]


def likeness_table(doses: Sequence[DoseLikeness]) -> str:
    """One line per dose, but for the unsteered models."""
    lines = ["the other model's change of its next words, beside the model's own"]
    lines += [
        f"{_dose(one.strengths):>8}  correlation {one.likeness.correlation:.3f}  size "
        f"{one.likeness.size:.3g}"
        for one in doses
        if any(one.strengths)
    ]
    return "\n".join(lines)


def _dose(strengths: Sequence[float]) -> str:
    return "/".join(f"{s:g}" for s in dict.fromkeys(strengths))
