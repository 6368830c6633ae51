"""Conversations whose last answer the models write: which prompts, by whom, and the texts then.

Nothing here runs a model: answers are what `harvest.answering` makes of `questions_of`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from datasets import Dataset, Features, Value

from ..hashing import hash_text
from .chat import Text, plain_prompt, render_prompt
from .messages import normalize_messages
from .roles import NO_WRITER, WRITER
from .texts import rows_of
from .tokenization import special_ids

Answers = Literal["none", "A", "B", "both", "mix"]
"""Who answers: nobody, one model, every model each prompt, or data set and models in turn."""

_NEXT_TURN = re.compile(r"\n\s*(User|Assistant|System|Tool):")


class Wanted(NamedTuple):
    """A text that is wanted of a conversation."""

    row: int
    """Of the data set."""

    writer: int
    """Who writes its answer; `NO_WRITER` for a text that stays as it is."""


def wanted_texts(
    texts: Dataset, answers: Answers, models: int, rows: range | None = None
) -> list[Wanted]:
    """The texts that are to be read of some rows, all by default, in their order.

    "both" has each conversation answered by every model; in a "mix" the data set's own answer and
    one by each model take turns by row, and where the data set has none the models alone. Plain
    texts and conversations without a user's turn stay as they are.
    """
    rows = range(len(texts)) if rows is None else rows
    batch: Any = texts.with_format(None)[rows.start : rows.stop]
    wanted = []
    for row, text in zip(rows, rows_of(batch), strict=True):
        if prompt_of(text) is None:
            writers = [NO_WRITER]
        elif answers == "both":
            writers = [*range(models)]
        elif answers == "mix":
            place = row % (models + 1)
            own = not isinstance(text, str) and text[-1]["role"] == "assistant"
            writers = [place - 1 if place or own else row // (models + 1) % models]
        else:
            writers = [["none", "A", "B"].index(answers) - 1]
        wanted += [Wanted(row, writer) for writer in writers]
    return wanted


def prompt_of(text: Text) -> list[dict[str, str]] | None:
    """A conversation up to its last user's turn; None for plain text and where no user speaks."""
    if isinstance(text, str):
        return None
    messages = normalize_messages(text)
    last = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    return messages[: last + 1] or None


def prompt_ids(prompt: Sequence[Mapping[str, Any]], tokenizer: Any) -> list[int]:
    """What a model is given to answer: its chat template, or without one `plain_prompt`.

    Raises jinja2's TemplateError where the template refuses the conversation.
    """
    if tokenizer.chat_template:
        return tokenizer(render_prompt(prompt, tokenizer), add_special_tokens=False)["input_ids"]
    system = "\n\n".join(m["content"] for m in prompt if m["role"] == "system")
    others = [message for message in prompt if message["role"] != "system"]
    return tokenizer(plain_prompt(others, system))["input_ids"]


def said_in_answer(ids: Sequence[int], tokenizer: Any, markers: Collection[str]) -> str:
    """The text of an answer, given as tokens without the one that ends it.

    It ends at the first special token, and for a model without a chat template where that goes on
    with another turn. What spells one of the `markers`, special tokens of any of the models, is
    taken out: in a template it would be read as one.
    """
    special = {*special_ids(tokenizer).tolist()}
    first = next((i for i, id in enumerate(ids) if id not in special), 0)
    last = next((i for i in range(first, len(ids)) if ids[i] in special), len(ids))
    text = tokenizer.decode(ids[first:last], skip_special_tokens=True)
    if not tokenizer.chat_template:
        text = _NEXT_TURN.split(text, maxsplit=1)[0]
    while found := next((marker for marker in markers if marker in text), None):
        text = text.replace(found, "")
    # Half of a character, which a cut answer can end with.
    return text.strip().removesuffix("\ufffd").strip()


def markers_of(tokenizers: Sequence[Any]) -> list[str]:
    """What spells a special token of any of the tokenizers, longest first."""
    found = {
        token
        for tokenizer in tokenizers
        for token in tokenizer.convert_ids_to_tokens(special_ids(tokenizer).tolist())
    }
    return sorted(
        (t for t in found if isinstance(t, str) and t.strip()), key=lambda t: (-len(t), t)
    )


def answered_texts(
    texts: Dataset, wanted: Sequence[Wanted], answers: Mapping[Wanted, str]
) -> Dataset:
    """The wanted texts, with the writer of each as a column `writer`.

    A text whose answer is not there, or empty, is left out.
    """
    kept = [one for one in wanted if one.writer == NO_WRITER or answers.get(one)]
    said = [answers.get(one, "") for one in kept]
    writers = [one.writer for one in kept]
    key = repr((texts._fingerprint, kept, said))
    return texts.select([one.row for one in kept]).map(
        _answer_batch,
        batched=True,
        with_indices=True,
        features=Features({**texts.features, WRITER: Value("int8")}),
        fn_kwargs={"said": said, "writers": writers},
        new_fingerprint=hash_text(key, "surrogatepass")[:32],
        desc="Answered conversations",
    )


def _answer_batch(
    batch: dict[str, list], rows: list[int], said: Sequence[str], writers: Sequence[int]
) -> dict[str, list]:
    messages = []
    for row, old in zip(rows, batch["messages"], strict=True):
        if writers[row] != NO_WRITER:
            empty = dict.fromkeys(old[0])
            answer = {**empty, "role": "assistant", "content": said[row]}
            last = max(i for i, message in enumerate(old) if message["role"] == "user")
            old = [*old[: last + 1], answer]
        messages.append(old)
    return {**batch, "messages": messages, WRITER: [writers[row] for row in rows]}
