"""Asking a judge, whatever client it is behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypedDict, TypeVar

from ..delphi import compat  # noqa: F401

# isort: split
from delphi import logger
from delphi.clients.client import Client, Response

from ..progress import progress
from .question import Answer, Message, Question, R, encodable
from .results import ResultKind

T = TypeVar("T")

Status = Literal["ok", "unparsable", "failed"]
""""ok": what was asked for was read. "unparsable": it was not, in any answer. "failed": the client
gave no answer, or there was nothing to ask about."""


class Account(TypedDict):
    """How a result was found out, as every file of a result has it."""

    status: Status
    raw: list[str]
    """The judge's answers, whole, in order."""

    attempts: int
    """Requests made to the client."""

    error: str | None
    """What went wrong, unless the status is "ok"."""


class HasStatus(Protocol):
    """A result of a question."""

    @property
    def status(self) -> Status: ...


@dataclass(frozen=True)
class Asked(Generic[R]):
    """What came of a question."""

    reading: R
    account: Account

    @property
    def status(self) -> Status:
        return self.account["status"]


async def ask(
    client: Client,
    question: Question[R],
    attempts: int | None = None,
    *,
    temperature: float = 0.0,
    **generation_kwargs: Any,
) -> Asked[R]:
    """Ask a question until its answer is read, at most `attempts` times (`question.attempts`).

    An answer that leaves something missing is followed by a reminder in the same conversation.
    Whatever the client does there is a result; only an exception that is no `Exception`, such as an
    exceeded budget, gets out. `generation_kwargs` are passed to the client. Raises ValueError for
    fewer than 1 attempt.
    """
    attempts = question.attempts if attempts is None else attempts
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1, not {attempts}.")
    arguments = {"temperature": temperature, **generation_kwargs}
    if getattr(client, "structured", False) and question.schema is not None:
        arguments["schema"] = question.schema
    messages, reading = question.messages(), question.parse(Answer(""))
    raw: list[str] = []
    made, error = 0, None
    while made < attempts and reading.missing:
        made += 1
        try:
            answer = await _answer(client, messages, arguments)
        except Exception as exception:
            error = encodable(f"{type(exception).__name__}: {exception}")
            break
        raw.append(answer.text)
        reading = reading.then(question.parse(answer))
        messages = _continued(messages, answer.text, question.reminder(reading))
    return _asked(question, reading, raw, made, error)


def nothing_to_ask(question: Question[R], error: str) -> Asked[R]:
    """What comes of a question that has nothing to be about."""
    return _asked(question, question.parse(Answer("")), [], 0, error)


def _asked(
    question: Question[R], reading: R, raw: list[str], attempts: int, error: str | None
) -> Asked[R]:
    status: Status = "ok" if reading.usable else "failed" if error else "unparsable"
    if status == "ok":
        error = None
    else:
        error = error or f"{question.unread(reading)} in {attempts} answers."
        logger.error(f"{question.about}: {status}: {error}")
    return Asked(reading, Account(status=status, raw=raw, attempts=attempts, error=error))


@dataclass(frozen=True)
class Todo(Generic[T]):
    """Something to ask about, with what is there of it already."""

    name: str
    """Of the result's file."""

    ask: Callable[[], Awaitable[T]]
    keeps: Callable[[T], bool]
    """Whether a result that is there already will do."""


def settled(result: HasStatus) -> bool:
    """Whether the judge answered, be it unreadably: asking again is of no use."""
    return result.status != "failed"


def kept_results(kind: ResultKind[T], folder: str | Path, todo: Iterable[Todo[T]]) -> dict[str, T]:
    """Results that are there already and will do, by their names.

    Raises ValueError for a file that is no result.
    """
    found = {}
    for one in todo:
        result = kind.load(folder, one.name)
        if result is not None and one.keeps(result):
            found[one.name] = result
    return found


async def ask_all(
    kind: ResultKind[T],
    folder: str | Path,
    todo: Sequence[Todo[T]],
    at_once: int,
    what: str,
    unit: str = "it",
) -> dict[str, T]:
    """Ask about everything, so many at a time; each result is written when it is there.

    What is there already is not looked at, see `kept_results`. `what` and `unit` are said beside
    the progress.
    """
    slots, found = asyncio.Semaphore(at_once), {}

    async def one_of_them(one: Todo[T]) -> None:
        async with slots:
            result = await one.ask()
            kind.save(folder, one.name, result)
        found[one.name] = result
        bar.update()

    async with progress(len(todo), what, unit) as bar:
        await asyncio.gather(*map(one_of_them, todo))
    return found


async def _answer(client: Client, messages: list[Message], arguments: Mapping[str, Any]) -> Answer:
    """A client's answer to a conversation; what the client raises gets out.

    Raises TypeError where a client gives no text.
    """
    response = await client.generate([dict(message) for message in messages], **arguments)
    text = response.text if isinstance(response, Response) else response
    if not isinstance(text, str):
        raise TypeError(f"the client gave {type(text).__name__}, not text.")
    stop_reason = getattr(getattr(response, "record", None), "stop_reason", None)
    fields = _object(text) if getattr(response, "structured", False) else None
    cut = stop_reason not in (None, "end_turn", "stop_sequence")
    return Answer(encodable(text), cut, fields)


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is; None for anything else, which is then read as text."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    return {k: encodable(v) if isinstance(v, str) else v for k, v in found.items()}


def _continued(messages: list[Message], answer: str, reminder: str) -> list[Message]:
    """A conversation with the judge's answer and what is said to it next."""
    return [
        *messages,
        # Some clients refuse an empty message.
        {"role": "assistant", "content": answer.strip() or "(no answer)"},
        {"role": "user", "content": reminder},
    ]
