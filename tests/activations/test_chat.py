import pytest
from jinja2.exceptions import TemplateError
from tokenizers_for_tests import CHATML, byte_level_tokenizer

from sparsify_crosscoder.activations.chat import normalize_messages, plain_text, render_chat

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


def test_a_message_that_the_template_alters_is_left_out():
    messages = [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "<think>hm</think>Because."},
        {"role": "user", "content": "I see."},
    ]
    assert found(messages, WITHOUT_THINKING) == ["Why?", "I see."]


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


def test_a_message_with_other_keys_is_refused_with_the_keys_it_has():
    with pytest.raises(ValueError, match=r"\['speaker', 'text'\]"):
        plain_text([{"speaker": "a", "text": "b"}])


def test_a_tokenizer_without_chat_template_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="--chat_format plain"):
        render(CHAT, None)


def test_a_conversation_that_the_template_refuses_raises_the_templates_error():
    with pytest.raises(TemplateError, match="no system"):
        render(CHAT, NO_SYSTEM)
