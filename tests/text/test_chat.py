import pytest
from jinja2.exceptions import TemplateError

from sparsify_crosscoder.text import templates
from sparsify_crosscoder.text.chat import plain_text, render_chat
from sparsify_crosscoder.text.messages import normalize_messages
from tests.support.tokenizers import CHATML, byte_level_tokenizer

TRIMMING = (
    "<s>{% for message in messages %}[{{ message['role'] }}]\n"
    "{{ message['content'] | trim }}\n{% endfor %}"
)
WITHOUT_THINKING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'].split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
)
SYSTEM_LAST = (
    "{% for message in messages if message['role'] != 'system' %}{{ message['content'] }}|"
    "{% endfor %}{{ messages[0]['content'] }}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for message in messages %}{{ message['content'] }}{% endfor %}"
)
WALL = "It is the wall that was built in 1961."
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  Where is it?\n"},
    {"role": "assistant", "content": "Here 😀."},
]


def render(messages, template):
    return render_chat(messages, byte_level_tokenizer(chat_template=template))


def found(messages, template):
    """Per span: what it covers in the rendered string, which must equal the plain text there."""
    rendered, spans = render(messages, template)
    plain = plain_text(messages)
    pieces = [rendered[start:stop] for start, stop, _ in spans]
    assert pieces == [plain[at : at + stop - start] for start, stop, at in spans]
    return pieces


def test_the_templates_own_rendering_is_returned():
    rendered, _ = render(CHAT[:2], CHATML)
    assert rendered == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n  Where is it?\n<|im_end|>\n"
    )


def test_spans_lead_from_the_rendered_string_to_the_plain_text():
    rendered, spans = render(CHAT[:2], CHATML)
    # "<|im_start|>system\n" is 19 characters, "<|im_end|>\n<|im_start|>user\n  " is 30.
    assert spans == [(19, 28, 0), (58, 70, 11)]
    assert rendered[58:70] == plain_text(CHAT[:2])[11:] == "Where is it?"


@pytest.mark.parametrize("template", [CHATML, TRIMMING])
def test_every_message_is_found_whether_or_not_the_template_trims(template):
    assert found(CHAT, template) == ["Be brief.", "Where is it?", "Here 😀."]


@pytest.mark.parametrize("content", ["user", "s", "im_start", "\n\nuser\n"])
def test_a_message_is_not_mistaken_for_the_templates_own_words(content):
    rendered, ((start, stop, position),) = render([{"role": "user", "content": content}], CHATML)
    assert rendered[:start].strip() == "<|im_start|>user"
    assert rendered[stop:].strip() == "<|im_end|>"
    assert position == 0


def test_nor_where_the_template_trims_it():
    rendered, ((start, stop, _),) = render([{"role": "user", "content": " user\n"}], TRIMMING)
    assert (rendered[:start], rendered[stop:]) == ("<s>[user]\n", "\n")


def test_of_a_message_that_the_template_alters_the_part_that_survives_is_found():
    messages = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "<think>hm</think>Because."},
        {"role": "user", "content": "I see."},
    ]
    assert found(messages, WITHOUT_THINKING) == ["Why?", "Because.", "I see."]


@pytest.mark.parametrize(
    ("alter", "expected"),
    [
        ("| upper", ["Why?"]),
        ("[:9]", ["Why?", "It is the"]),
        ("| replace('wall', 'hedge')", ["Why?", "that was built in 1961."]),
        (
            "| replace(' ', '  ')",
            ["Why?", *["It", "is", "the", "wall", "that", "was", "built", "in", "1961."]],
        ),
        ("~ ' (so they say)'", ["Why?", WALL]),
        ("| length", ["Why?"]),
    ],
)
def test_nothing_is_found_of_a_message_but_what_the_template_kept_of_it(alter, expected):
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        f"{{{{ m.content {alter} }}}}{{% else %}}{{{{ m.content }}}}{{% endif %}}<|im_end|>\n"
        "{% endfor %}"
    )
    messages = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": WALL},
    ]
    assert found(messages, template) == expected


def test_a_message_that_the_template_drops_does_not_hide_the_others():
    template = (
        "{% for m in messages if m.role != 'system' %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    )
    assert found(CHAT, template) == ["Where is it?", "Here 😀."]


def test_reasoning_that_is_kept_apart_is_read_where_the_template_writes_it():
    messages = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Because.", "reasoning_content": "Let me think."},
    ]
    template = (
        "{% for m in messages %}[{{ m.role }}]{% if m.reasoning_content %}<think>"
        "{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}{% endfor %}"
    )
    assert plain_text(messages) == "Why?\n\nLet me think.\n\nBecause."
    assert found(messages, template) == ["Why?", "Let me think.", "Because."]
    assert found(messages, CHATML) == ["Why?", "Because."]


def test_tool_calls_names_and_tools_reach_the_template():
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "map"}}}
    messages = normalize_messages(
        [
            {"role": "user", "content": "Where?", "name": "Ada", "tool_calls": None},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "North.", "tool_call_id": "c1"},
        ],
        {"tools": [{"type": "function", "function": {"name": "look"}}]},
    )
    template = (
        "{{ tools | length }}{% for m in messages %}<{{ m.role }} {{ m.name }}{{ m.tool_call_id }}>"
        "{% if 'tool_calls' in m %}{{ m.tool_calls[0].function | tojson }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    rendered, _ = render(messages, template)
    assert rendered == (
        '1<user Ada>Where?<assistant >{"name": "look", "arguments": {"at": "map"}}<tool c1>North.'
    )
    assert found(messages, template) == ["Where?", "North."]


def test_a_message_moved_behind_later_ones_does_not_break_the_order():
    assert found(CHAT, SYSTEM_LAST) == ["Be brief."]


def test_messages_without_content_have_no_span_but_keep_the_positions_of_the_others():
    messages = [
        {"role": "user", "content": ""},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "Hello?"},
    ]
    rendered, spans = render(messages, CHATML)
    assert [(rendered[start:stop], at) for start, stop, at in spans] == [("Hello?", 4)]
    assert plain_text(messages) == "\n\n\n\nHello?"


def test_a_conversation_without_messages_is_empty():
    assert render([], CHATML) == ("", [])
    assert plain_text([]) == ""


def test_sharegpt_messages_are_read_with_the_usual_roles():
    messages = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    assert normalize_messages(messages) == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]
    assert found(messages, CHATML) == ["Hi", "Hello"]


def test_content_in_parts_is_reduced_to_its_text():
    parts = [{"type": "text", "text": "Look: "}, {"type": "image"}, {"type": "text", "text": "a"}]
    assert plain_text([{"role": "user", "content": parts}]) == "Look: a"
    refusal = {"type": "refusal", "refusal": "I cannot."}
    assert plain_text([{"role": "assistant", "content": [refusal]}]) == "I cannot."


def test_a_message_with_other_keys_is_refused_with_the_keys_it_has():
    with pytest.raises(ValueError, match=r"\['speaker', 'text'\]"):
        plain_text([{"speaker": "a", "text": "b"}])


def test_a_tokenizer_without_chat_template_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="--chat_format plain"):
        render(CHAT, None)


def test_a_conversation_that_the_template_refuses_raises_the_templates_error():
    with pytest.raises(TemplateError, match="no system"):
        render(CHAT, NO_SYSTEM)


@pytest.mark.parametrize(
    ("written", "expected"),
    [("%d %b %Y", "26 Jul 2024"), ("%Y-%m-%d", "2024-07-26"), ("%A", "Friday")],
)
def test_templates_are_told_one_date(written, expected):
    template = f"{{{{ strftime_now('{written}') }}}}|{CHATML}"
    rendered, _ = render(CHAT[:1], template)
    assert rendered.startswith(expected + "|")


@pytest.mark.parametrize(
    "endless",
    [
        "{{ 'a' * 10000000000 }}",
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}"
        "{% endfor %}{{ ns.s }}",
        "{{ 'a' | center(10000000000) }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 10 ** 10 ** 9 }}",
    ],
)
def test_a_template_that_eats_time_or_memory_is_ended(monkeypatch, endless):
    monkeypatch.setattr(templates, "SECONDS", 0.3)
    monkeypatch.setattr(templates, "BYTES", 200 << 20)
    with pytest.raises(ValueError, match=r"The chat template of .*--chat_format plain"):
        render(CHAT, endless + CHATML)


@pytest.mark.parametrize("broken", ["{% for m in messages %}", "{{ x | nofilter }}", "{% if %}"])
def test_a_template_that_cannot_be_compiled_is_named(broken):
    with pytest.raises(ValueError, match="is no valid template"):
        render(CHAT, broken)


@pytest.mark.parametrize(
    "failing",
    ["{{ 1 / 0 }}", "{{ messages[9].content + 1 }}", "{% for i in range(1000000) %}{% endfor %}"],
)
def test_whatever_a_template_fails_with_is_its_refusal(failing):
    with pytest.raises(TemplateError):
        render(CHAT, failing)
