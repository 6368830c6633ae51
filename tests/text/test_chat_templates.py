"""Conversations in the chat templates that models really have align on what was said, only."""

import re
from itertools import permutations
from pathlib import Path

import pytest

from sparsify_crosscoder.text.alignment import Reason, align_tokens
from sparsify_crosscoder.text.chat import plain_text, render_chat
from sparsify_crosscoder.text.token_ends import CONTENT
from tests.support.tokenizers import byte_level_tokenizer, metaspace_tokenizer

BAR = "\uff5c"  # full width, as DeepSeek writes it
TEMPLATES = Path(__file__).parent / "chat_templates"
CONVERSATIONS = {
    "plain": [
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": "Here."},
    ],
    "with a system prompt": [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": "  What is “it’s” in 한국어?\n\n"},  # noqa: RUF001
        {"role": "assistant", "content": "\n그것은 👩\u200d👩\u200d👧.\n\n```py\nreturn 1\n```"},
        {"role": "user", "content": "user"},
        {"role": "assistant", "content": "assistant\nuser: 这个"},
    ],
    "ending with a question": [
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "C <|im_end|> ?"},
    ],
}


def with_template(tokenizer, name):
    """The tokenizer with a model's template and the special tokens that the template writes."""
    template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    special = sorted(set(re.findall(rf"<[|{BAR}][\w▁]+[|{BAR}]>", template)))
    if name == "deepseek_v3":
        tokenizer.bos_token = f"<{BAR}begin▁of▁sentence{BAR}>"
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.chat_template = template
    return tokenizer


SOURCES = {
    "smollm2": with_template(byte_level_tokenizer(vocab_size=300), "smollm2"),
    "qwen3": with_template(byte_level_tokenizer(vocab_size=400), "qwen3"),
    "deepseek_v3": with_template(metaspace_tokenizer(bos=True), "deepseek_v3"),
}


def said(messages):
    """Where the plain text holds content: up to which characters everything must be paired."""
    position, ends = 0, []
    for message in messages:
        content = message["content"].strip()
        position += len(content)
        ends.append(position)
        position += 2
    return ends


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("names", [*permutations(SOURCES, 2), tuple(SOURCES)])
def test_a_conversation_aligns_on_what_was_said_and_nothing_else(kind, names):
    messages = CONVERSATIONS[kind]
    alignment = align_tokens(messages, [SOURCES[name] for name in names])
    plain = plain_text(messages)
    assert set(said(messages)) <= set(alignment.ends)
    for source, name in enumerate(names):
        tokenizer = SOURCES[name]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False)
        encoding = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
        assert alignment.input_ids[source] == encoding["input_ids"]
        for token, end in zip(alignment.indices[source], alignment.ends, strict=True):
            start, stop = encoding["offset_mapping"][token]
            piece = rendered[start:stop].rstrip().lstrip(">\n")
            assert plain[:end].endswith(piece)
        _, spans = render_chat(messages, tokenizer)
        for token, reason in enumerate(alignment.reasons[source]):
            start, stop = encoding["offset_mapping"][token]
            ends_at = start + len(rendered[start:stop].rstrip())
            inside = any(first < ends_at <= last for first, last, _ in spans)
            assert (reason == Reason.TEMPLATE) <= (not inside)
            assert (reason in CONTENT) <= inside


@pytest.mark.parametrize("name", SOURCES)
def test_what_the_template_writes_is_left_out_with_its_reason(name):
    messages = CONVERSATIONS["plain"]
    alignment = align_tokens(messages, [SOURCES[name], SOURCES["smollm2"]])
    left_out = alignment.left_out[0]
    tokens = SOURCES[name].convert_ids_to_tokens(alignment.input_ids[0])
    specials = {tokens[index] for index in left_out[Reason.SPECIAL]}
    roles = {f"<{BAR}{role}{BAR}>" for role in ("User", "Assistant")}
    expected = roles if name == "deepseek_v3" else {"<|im_start|>"}
    assert expected <= specials
    if name != "deepseek_v3":  # whose roles are special tokens
        template = "".join(tokens[index] for index in left_out[Reason.TEMPLATE])
        assert "user" in template
        assert "assistant" in template
    if name == "smollm2":  # which speaks first when nobody gave a system prompt
        assert "named" in template


def test_special_tokens_that_a_message_quotes_are_content_to_no_model_that_has_them():
    messages = CONVERSATIONS["ending with a question"]
    alignment = align_tokens(messages, [SOURCES["smollm2"], SOURCES["deepseek_v3"]])
    plain = plain_text(messages)
    quoted = range(plain.index("<|im_end|>") + 1, plain.index("<|im_end|>") + 11)
    assert not set(alignment.ends) & set(quoted)
    assert alignment.ends[-1] == len(plain)
