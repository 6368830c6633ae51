"""Chat templates are programs: run with bounded time and memory, on one date."""

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any

from jinja2 import Environment
from jinja2.exceptions import TemplateError, TemplateRuntimeError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

TEMPLATE_DATE = "2024-07-26"
"""The day that templates are told it is; the one that Llama 3.1's template falls back on."""
SECONDS, BYTES, CHARACTERS = 10, 2 << 30, 50_000_000
"""What rendering one conversation may take: processor time, further memory, length."""


class TemplateLimitError(ValueError):
    """A chat template that does not end or takes too much memory."""


def render_template(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    **conversation: Any,
) -> str:
    """The conversation in the tokenizer's own chat template, rendered on `TEMPLATE_DATE`.

    `conversation` are its tools and documents, and `add_generation_prompt`. Raises ValueError for a
    template that cannot be compiled or exceeds the limits, and jinja2's TemplateError where it
    refuses the conversation or fails on it.
    """
    name = f"The chat template of {tokenizer.name_or_path or type(tokenizer).__name__}"
    try:
        with _limited(name), _dated(tokenizer, conversation.get("tools")):
            rendered = tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, **conversation
            )
    except TemplateSyntaxError as error:
        raise ValueError(
            f"{name} is no valid template: {error.message} (line {error.lineno}). Mend the "
            "tokenizer's `chat_template`, or read the messages with `--chat_format plain`."
        ) from error
    except (TemplateError, TemplateLimitError):
        raise
    except MemoryError as error:
        raise _too_much(name, f"more than {BYTES >> 30} GB of memory") from error
    except Exception as error:
        # A program of somebody else's, which may fail with anything.
        raise TemplateRuntimeError(f"{type(error).__name__}: {error}") from error
    assert isinstance(rendered, str)
    if len(rendered) > CHARACTERS:
        raise _too_much(name, f"{len(rendered):,} characters")
    return rendered


@contextmanager
def _dated(tokenizer: PreTrainedTokenizerBase, tools: Any) -> Iterator[None]:
    """Has the template's `strftime_now` tell `TEMPLATE_DATE`."""
    template = tokenizer.get_chat_template(None, tools)
    names = _environment(template).globals
    usual = names["strftime_now"]
    names["strftime_now"] = datetime.fromisoformat(TEMPLATE_DATE).strftime
    try:
        yield
    finally:
        names["strftime_now"] = usual


@lru_cache(maxsize=64)
def _environment(template: str) -> Any:
    """What the template runs in. Raises TemplateSyntaxError for one that cannot be compiled."""
    for line, kind, value in Environment().lex(template):
        if (kind, value) == ("operator", "**"):
            # One such number can take minutes, in which no signal is answered.
            raise TemplateSyntaxError("powers (**) are not computed", line)
    return chat_template_utils._compile_jinja_template(template).environment


@contextmanager
def _limited(name: str) -> Iterator[None]:
    """Bounds of processor time, in the main thread, and of memory, where the system has them."""
    timed = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise _too_much(name, f"more than {SECONDS} seconds")

    usual = signal.signal(signal.SIGVTALRM, stop) if timed else None
    try:
        with _limited_memory():
            if timed:
                signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
            try:
                yield
            finally:
                if timed:
                    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    finally:
        if timed:
            signal.signal(signal.SIGVTALRM, usual or signal.SIG_DFL)


@contextmanager
def _limited_memory() -> Iterator[None]:
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = pages * resource.getpagesize() + BYTES
        if soft != resource.RLIM_INFINITY:
            limit = min(limit, soft)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (ImportError, OSError, ValueError):
        yield  # a system without such limits
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _too_much(name: str, what: str) -> TemplateLimitError:
    return TemplateLimitError(
        f"{name} takes {what} for one conversation. Mend the tokenizer's `chat_template`, or read "
        "the messages with `--chat_format plain`."
    )
