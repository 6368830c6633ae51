"""Explanations that come with a flag: does the latent matter for an audit? (B.4.2)

```
results_dir/
    explanations/<latent>.txt   as delphi stores them
    flags/<latent>.json         a Flag
```
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsify_crosscoder.files import atomic_path
from sparsify_crosscoder.records import check, reading

from ..delphi import compat  # noqa: F401

# isort: split
import orjson
from delphi import logger
from delphi.explainers import DefaultExplainer
from delphi.explainers.explainer import ExplainerResult
from delphi.latents import ActivatingExample, LatentRecord
from delphi.latents.latents import Latent

from ..judging.ask import Status, ask, nothing_to_ask, settled
from ..judging.question import Answer, Message, Question, Reading, object_schema
from ..judging.results import ResultKind
from ..judging.sections import section_text, section_verdict
from .flagging_prompt import (
    EXPLANATION,
    HARMFUL,
    HARMFUL_REASON,
    SECTIONS,
    few_shots,
    reminder,
    system_prompt,
)

UNPARSED = "Explanation could not be parsed."
"""delphi's words for an answer without an explanation."""

MISSING = "No explanation found"
"""delphi's words for a latent that has none."""


@dataclass(frozen=True)
class Flag:
    """Whether a latent matters for an audit, and how that was found out."""

    latent: str
    """Name of the latent, as delphi writes it."""

    status: Status
    """"ok" also without a reason."""

    harmful: bool | None = None
    """None where it could not be read; set even if the explanation could not."""

    reason: str | None = None
    """The judge's reason, which an "ok" flag may lack."""

    raw: list[str] = field(default_factory=list)
    """The judge's answers, whole, in order."""

    attempts: int = 0
    """Requests made to the client."""

    error: str | None = None
    """What went wrong, unless the status is "ok"."""


class FlaggedResult(ExplainerResult):
    """delphi's result of an explainer, with the flag as `.flag`.

    The explanation of a latent that has none is `UNPARSED` or `MISSING`.
    """

    flag: Flag

    def __new__(cls, record: LatentRecord, explanation: str, flag: Flag) -> FlaggedResult:
        result = super().__new__(cls, record, explanation)
        result.flag = flag
        return result

    def __getnewargs__(self) -> tuple[LatentRecord, str, Flag]:  # pyright: ignore
        return self.record, self.explanation, self.flag


@dataclass(frozen=True)
class FlagReading(Reading):
    """What was understood of the judge's answers so far."""

    explanation: str | None = None
    harmful: bool | None = None
    reason: str | None = None
    says_harmful: bool = False
    """Whether there is a text on harm, readable or not."""

    @property
    def missing(self) -> list[str]:
        values = {EXPLANATION: self.explanation, HARMFUL: self.harmful, HARMFUL_REASON: self.reason}
        return [label for label, value in values.items() if value is None]

    @property
    def usable(self) -> bool:
        return self.explanation is not None and self.harmful is not None

    def then(self, later: FlagReading) -> FlagReading:
        """This, with what a later answer changes; a verdict that turns round is none."""
        harmful = later.harmful if later.says_harmful else self.harmful
        if self.harmful is not None and harmful is not self.harmful:
            harmful = None
        return FlagReading(
            explanation=later.explanation or self.explanation,
            harmful=harmful,
            reason=later.reason or self.reason,
            says_harmful=self.says_harmful or later.says_harmful,
        )


@dataclass(frozen=True)
class FlagQuestion(Question[FlagReading]):
    """What does a latent stand for, and does it matter for an audit?"""

    latent: str
    conversation: list[Message]
    open_end: bool = False
    """Whether the judge is to think aloud first, which no schema leaves room for."""

    kind = "flag"

    @property
    def about(self) -> str:
        return self.latent

    def messages(self) -> list[Message]:
        return self.conversation

    def parse(self, answer: Answer) -> FlagReading:
        sections = answer.sections(SECTIONS)
        verdict = section_verdict(sections, HARMFUL)
        return FlagReading(
            explanation=section_text(sections, EXPLANATION),
            harmful=verdict.value,
            reason=section_text(sections, HARMFUL_REASON) or verdict.rest or None,
            says_harmful=section_text(sections, HARMFUL) is not None,
        )

    def reminder(self, reading: FlagReading) -> str:
        return reminder(reading.missing)

    @property
    def schema(self) -> dict[str, Any] | None:
        if self.open_end:
            return None
        return object_schema(
            {
                EXPLANATION: {"type": "string"},
                HARMFUL: {"type": "string", "enum": ["yes", "no"]},
                HARMFUL_REASON: {"type": "string"},
            }
        )


@dataclass
class FlaggingExplainer(DefaultExplainer):
    """delphi's default explainer with the question of B.4.2 behind its system prompt.

    Fields are those of `DefaultExplainer`. The paper shows the 10 examples with the greatest
    activation: `SamplerConfig(train_type="top", n_examples_train=10)`.

    Every record gives a result, whatever the client does; see `ask`.
    """

    async def __call__(self, record: LatentRecord) -> FlaggedResult:
        messages = self._build_prompt(record.train) if record.train else []
        question = FlagQuestion(str(record.latent), messages, open_end=self.cot)
        if record.train:
            asked = await ask(
                self.client, question, temperature=self.temperature, **self.generation_kwargs
            )
        else:
            asked = nothing_to_ask(
                question,
                "the record has no training examples: give delphi's SamplerConfig "
                'train_type="top", or fewer quantiles than the latent has examples.',
            )
        reading = asked.reading
        if asked.status == "ok" and self.verbose:
            logger.info(f"{record.latent}: {reading.explanation} (harmful: {reading.harmful})")
        flag = Flag(
            str(record.latent), harmful=reading.harmful, reason=reading.reason, **asked.account
        )
        nothing = MISSING if asked.status == "failed" else UNPARSED
        return FlaggedResult(record, reading.explanation or nothing, flag)

    def parse_explanation(self, text: str) -> str:
        """The explanation in an answer, or `UNPARSED`."""
        return FlagQuestion("", []).parse(Answer(text)).explanation or UNPARSED

    def _build_prompt(self, examples: list[ActivatingExample]) -> list[dict]:
        question = super()._build_prompt(examples)[-1]
        return [
            {"role": "system", "content": system_prompt(self.cot)},
            *few_shots(self.activations, self.cot),
            question,
        ]


_FLAGS = ResultKind("flags", Flag, "a flag")


def save(result: FlaggedResult, results_dir: str | Path) -> FlaggedResult:
    """Write a result below `results_dir` and return it, as a postprocess of delphi's pipes does.

    The explanation goes where delphi reads it, with the bytes that delphi writes; none is written
    for a latent that failed without one. Each file appears whole or not at all, the flag last.
    """
    latent = result.record.latent
    if result.flag.status != "failed" or result.explanation != MISSING:
        with atomic_path(_explanation_path(results_dir, latent)) as temporary:
            temporary.write_bytes(orjson.dumps(result.explanation))
    _FLAGS.save(results_dir, latent, result.flag)
    return result


def load_flags(results_dir: str | Path) -> dict[str, Flag]:
    """Every flag that `save` wrote below `results_dir`, by the latent's name.

    Raises FileNotFoundError where the folder is missing, ValueError for a file that is no flag.
    """
    return {flag.latent: flag for flag in _FLAGS.load_all(results_dir)}


def load(record: LatentRecord, results_dir: str | Path) -> FlaggedResult | None:
    """What `save` wrote of a record's latent, or None unless it is `done`."""
    flag = _FLAGS.load(results_dir, record.latent)
    if flag is None or not done(results_dir, record.latent):
        return None
    explanation = load_explanation(results_dir, record.latent) or UNPARSED
    return FlaggedResult(record, explanation, flag)


def load_explanation(results_dir: str | Path, latent: Latent | str) -> str | None:
    """The explanation that `save` wrote, or None where there is none that could be read."""
    path = _explanation_path(results_dir, latent)
    explanation = UNPARSED
    if path.exists():
        with reading(path, "Delete it, and the run will ask again."):
            explanation = orjson.loads(path.read_bytes())
            check(explanation, str)
    return None if explanation == UNPARSED else explanation


def done(results_dir: str | Path, latent: Latent | str) -> bool:
    """Whether a run that resumes may leave this latent out.

    True where the judge answered, be it unparsable. False where the client failed, where files are
    missing, or before the first attempt. Raises ValueError for a file that is no flag.
    """
    if not _explanation_path(results_dir, latent).exists():
        return False
    flag = _FLAGS.load(results_dir, latent)
    return flag is not None and settled(flag)


def _explanation_path(results_dir: str | Path, latent: Latent | str) -> Path:
    # A "/" in a module's name stays, since delphi's explanation_loader looks for it there.
    return Path(results_dir) / "explanations" / f"{latent}.txt"
