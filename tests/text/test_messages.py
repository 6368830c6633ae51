import json

import pytest

from sparsify_crosscoder.text.messages import (
    ShapeError,
    looks_like_conversation,
    normalize_messages,
    read_conversation,
)

CHAT = [{"role": "user", "content": "It's 1 {2}"}, {"role": "assistant", "content": 'A "b"\nc'}]


def read(value):
    return normalize_messages(read_conversation(value))


@pytest.mark.parametrize(
    "stored",
    [
        CHAT,
        [CHAT[0], None, CHAT[1]],
        json.dumps(CHAT),
        json.dumps({"messages": CHAT}),
        repr(CHAT),
        str(CHAT).replace("}, {", "}\n {"),  # as numpy prints an array
        f"array([{CHAT[0]},\n       {CHAT[1]}], dtype=object)",
        [json.dumps(message) for message in CHAT],
        {"role": [m["role"] for m in CHAT], "content": [m["content"] for m in CHAT]},
        {"from": ["human", "gpt"], "value": [m["content"] for m in CHAT]},
        [{"from": "Human", "value": CHAT[0]["content"]}, {**CHAT[1], "from": None, "value": None}],
        [{"role": None, "content": None, "from": "user", "value": CHAT[0]["content"]}, CHAT[1]],
        [{"role": "USER", "content": CHAT[0]["content"], "weight": 0.5}, CHAT[1]],
        [{"role": "user", "content": {"text": CHAT[0]["content"]}}, CHAT[1]],
        [{"role": "user", "content": ["It's", " 1 {2}"]}, CHAT[1]],
        [{"role": "user", "content": [None, {"type": "text", "text": "It's 1 {2}"}]}, CHAT[1]],
    ],
)
def test_a_conversation_is_read_from_every_shape_it_is_stored_in(stored):
    assert read(stored) == CHAT


@pytest.mark.parametrize("nothing", [None, "", " ", "null", [], "[]"])
def test_a_missing_conversation_has_no_messages(nothing):
    assert read(nothing) == []


@pytest.mark.parametrize(
    ("names", "role"),
    [
        (("human", "user", "Human", "prompter"), "user"),
        (("gpt", "chatgpt", "bing", "bard", "model", "assistant", "Assistant"), "assistant"),
        (("tool", "function", "observation"), "tool"),
        (("system", "System"), "system"),
    ],
)
def test_speakers_are_called_as_templates_call_them(names, role):
    for name in names:
        assert read([{"from": name, "value": "x"}]) == [{"role": role, "content": "x"}]


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        ("USER: hello", "plain text 'USER: hello'"),
        ("[not, a, list", "plain text"),
        (["hi", "hello"], "the string 'hi'"),
        ([[CHAT[0]]], "a list in it"),
        (42, "int 42"),
        ([{"role": "user", "content": 42}], "int 42 for content"),
        ([{"role": 1, "content": "x"}], "int 1"),
        ([{"role": "user", "content": [{"foo": "x"}]}], "keys \\['foo'\\]"),
        ([{"speaker": "a", "text": "b"}], "\\['speaker', 'text'\\]"),
        ({"role": ["user"], "content": []}, "unequal length"),
    ],
)
def test_a_shape_that_is_not_known_is_refused_with_what_was_found(stored, found):
    with pytest.raises(ShapeError, match=found):
        read(stored)


def test_only_strings_that_hold_messages_look_like_a_conversation():
    assert looks_like_conversation(json.dumps(CHAT))
    assert looks_like_conversation(repr(CHAT))
    for text in ("[1, 2]", "{}", "[]", "[citation needed]", '{"a": 1}', "hello"):
        assert not looks_like_conversation(text), text


def test_what_templates_may_write_besides_is_kept_as_json_without_the_nulls_of_a_table():
    call = {"function": {"name": "f", "arguments": {"x": 1, "y": None}}, "id": None}
    (message,) = normalize_messages(
        [{"role": "assistant", "content": None, "tool_calls": [call], "name": None, "weight": 1}]
    )
    assert json.loads(message["extras"]) == {
        "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]
    }
    assert normalize_messages([message]) == [message]


def test_reasoning_is_kept_under_one_name_wherever_it_stood():
    part = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "so"}]
    for message in (
        {"content": "so", "reasoning_content": "hm"},
        {"content": "so", "thinking": "hm"},
        {"content": "so", "reasoning": "hm"},
        {"content": part},
    ):
        (read_message,) = normalize_messages([{"role": "assistant", **message}])
        assert read_message["content"] == "so"
        assert json.loads(read_message["extras"])["reasoning_content"] == "hm"
