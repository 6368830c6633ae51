"""Asking a judge, whatever client it is behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..delphi import compat  # noqa: F401

# isort: split
from delphi.clients.client import Client, Response

ATTEMPTS = 2
"""Answers asked for: the first, and one more after a reminder."""


class Answer(NamedTuple):
    """What a judge said."""

    text: str
    cut: bool
    """Whether it is known not to have come to its end."""

    @property
    def whole_lines(self) -> str:
        """The text without a last line that may go on: "no" may have become "not sure"."""
        return self.text.rpartition("\n")[0] if self.cut else self.text


async def ask(
    client: Client,
    messages: Sequence[Mapping[str, str]],
    temperature: float,
    arguments: Mapping[str, Any],
) -> Answer:
    """A client's answer to a conversation; what the client raises gets out.

    Raises TypeError where a client gives no text.
    """
    response = await client.generate(
        [dict(message) for message in messages], temperature=temperature, **arguments
    )
    text = response.text if isinstance(response, Response) else response
    if not isinstance(text, str):
        raise TypeError(f"the client gave {type(text).__name__}, not text.")
    stop_reason = getattr(getattr(response, "record", None), "stop_reason", None)
    return Answer(encodable(text), stop_reason not in (None, "end_turn", "stop_sequence"))


def continued(
    messages: Sequence[dict[str, str]], answer: str, reminder: str
) -> list[dict[str, str]]:
    """A conversation with the judge's answer and what is said to it next."""
    return [
        *messages,
        # Some clients refuse an empty message.
        {"role": "assistant", "content": answer.strip() or "(no answer)"},
        {"role": "user", "content": reminder},
    ]


def encodable(text: str) -> str:
    """Text that can be written: half a surrogate pair, as of a cut emoji, cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
