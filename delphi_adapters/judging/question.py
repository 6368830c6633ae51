"""A question to a judge: what it is asked, how its answer is read, what it is told if it is not.

A new question is a `Reading` and a `Question`; `ask` does the rest: attempts, reminders, what the
client raises, and what came of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from .sections import Section, find_sections

Message = dict[str, str]
"""`{role, content}`."""


class Answer(NamedTuple):
    """What a judge said."""

    text: str
    cut: bool = False
    """Whether it is known not to have come to its end."""

    fields: Mapping[str, Any] | None = None
    """Values by the properties of the question's schema, where the judge was held to it."""

    @property
    def whole_lines(self) -> str:
        """The text without a last line that may go on: "no" may have become "not sure"."""
        return self.text.rpartition("\n")[0] if self.cut else self.text

    def sections(self, labels: Iterable[str]) -> list[Section]:
        """What is under each label: a field of this name, or a section of the text."""
        labels = list(labels)
        if self.fields is None:
            return find_sections(self.whole_lines, labels)
        texts = {label: _as_text(self.fields.get(label)) for label in labels}
        return [Section(label, text, True) for label, text in texts.items()]


class Reading(ABC):
    """What was understood of a judge's answers so far."""

    @property
    @abstractmethod
    def missing(self) -> list[str]:
        """Labels of what could not be read, which the judge is asked for again."""

    @property
    def usable(self) -> bool:
        """Whether it is enough for a result."""
        return not self.missing

    def then(self: R, later: R) -> R:
        """This, with what a later answer changes."""
        return later


R = TypeVar("R", bound=Reading)


class Question(ABC, Generic[R]):
    """What a judge is asked about one thing."""

    kind: ClassVar[str]
    """What is asked for, such as "category"."""

    attempts: ClassVar[int] = 2
    """Answers asked for: the first, and others after a reminder each."""

    @property
    @abstractmethod
    def about(self) -> str:
        """What it is asked about, as a log names it."""

    @abstractmethod
    def messages(self) -> list[Message]:
        """The conversation that it begins with. Stored answers are found by every byte of it."""

    @abstractmethod
    def parse(self, answer: Answer) -> R:
        """What is understood of one answer, which may be empty."""

    @abstractmethod
    def reminder(self, reading: R) -> str:
        """What is said to a judge after an answer that leaves something missing."""

    def unread(self, reading: R) -> str:
        """What is wrong with the answers, for a person: "in 2 answers" follows."""
        return f"{labelled(reading.missing)} could not be read"

    @property
    def schema(self) -> dict[str, Any] | None:
        """Of an answer as a JSON object, for judges that can be held to one; else None."""
        return None


def labelled(names: Iterable[str]) -> str:
    """Labels as they are written in answers."""
    return ", ".join(f"[{name}]" for name in names)


def could_not_read(what: str, instead: str) -> str:
    """A reminder: what could not be read in the last answer, and what to answer instead."""
    return f"I could not read {what} in your answer. {instead}"


def object_schema(properties: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Of an object with exactly these properties, in this order."""
    return {
        "type": "object",
        "properties": {name: dict(value) for name, value in properties.items()},
        "required": list(properties),
        "additionalProperties": False,
    }


def encodable(text: str) -> str:
    """Text that can be written: half a surrogate pair, as of a cut emoji, cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _as_text(value: Any) -> str:
    """A text or a whole number as text; anything else was not asked for."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value.strip() if isinstance(value, str) else ""
