import json
import logging

import datasets
import pytest
from datasets import Dataset, config

from sparsify_crosscoder.text.alignment_report import alignment_report
from sparsify_crosscoder.text.text_loss import measure_loss
from sparsify_crosscoder.text.texts import load_texts
from sparsify_crosscoder.text.tokenization import source_tokenizers
from sparsify_crosscoder.text.windows import prepare_windows
from tests.support.tokenizers import CHATML, byte_level_tokenizer, metaspace_tokenizer

ANSWER = "The river turns to the north, and they would meet where it does."
PLAIN = byte_level_tokenizer(chat_template=CHATML)


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def altering(alter):
    assistant = f"{{% if m.role == 'assistant' %}}{{{{ {alter} }}}}"
    content = assistant + "{% else %}{{ m.content }}{% endif %}"
    return byte_level_tokenizer(
        chat_template="{% for m in messages %}<|im_start|>{{ m.role }}\n"
        + content
        + "<|im_end|>\n{% endfor %}"
    )


def chats(answer=ANSWER, **more):
    chat = [
        {"role": "user", "content": "Where does it turn?"},
        {"role": "assistant", "content": answer, **more},
    ]
    return Dataset.from_dict({"messages": [chat] * 3})


def measured(texts, tokenizers, **options):
    windows = prepare_windows(texts, tokenizers, ctx_len=64, **options)
    sources = source_tokenizers(tokenizers)
    return windows, measure_loss(texts, windows, sources, options.get("chat_format", "template"))


def test_characters_are_counted_by_hand_for_each_role(caplog):
    _, loss = measured(chats(), [PLAIN, PLAIN])
    (roles,) = loss.characters.values()
    said = {role: count.said for role, count in roles.items()}
    assert said == {"user": 3 * 16, "assistant": 3 * 52, "all": 3 * 68}
    assert roles["all"].share == 1
    assert not caplog.records


def test_a_first_token_that_is_dropped_is_not_counted(caplog):
    texts = Dataset.from_dict({"text": ["the dog", " ", ""]})
    _, loss = measured(texts, [PLAIN, PLAIN])
    first = len(str(PLAIN.decode(PLAIN("the dog")["input_ids"][:1])).strip())
    assert loss.characters["texts"]["plain"] == (6, 6 - first)


@pytest.mark.parametrize(
    "alter",
    ["m.content | upper", "m.content | length", "m.content[:9]", "'...'", "m.content | reverse"],
)
def test_what_a_template_alters_is_warned_of_with_the_reason(caplog, alter):
    with caplog.at_level(logging.WARNING, logger="sparsify_crosscoder"):
        windows, loss = measured(chats(), [PLAIN, altering(alter)])
    assert loss.characters["texts"]["user"].share == 1
    assert loss.characters["texts"]["assistant"].share < 0.5
    assert "of assistant messages became pairs" in caplog.text
    assert "leaves it out or alters it" in caplog.text
    report = alignment_report(windows, 3, loss)
    assert report.characters is not None
    assert report.characters["texts"]["assistant"]["share"] < 0.5
    json.dumps(report.characters)


@pytest.mark.parametrize("kept", ["messages[2:]", "messages[-1:]", "messages[3:]"])
def test_what_a_template_leaves_out_at_the_start_is_not_called_a_first_token(caplog, kept):
    template = f"{{% for m in {kept} %}}{{{{ m.content }}}}<|im_end|>\n{{% endfor %}}"
    said = [("system", "Be brief."), ("user", ANSWER * 2), ("user", ANSWER), ("assistant", ANSWER)]
    chat = [{"role": role, "content": content} for role, content in said]
    texts = Dataset.from_dict({"messages": [chat] * 3})
    measured(texts, [byte_level_tokenizer(chat_template=template)] * 2)
    assert "of system messages became pairs (0 of 24)" in caplog.text
    assert all("leaves it out or alters it" in record.message for record in caplog.records)


def test_what_is_left_of_an_answer_is_paired_and_the_reasoning_counted_as_lost(caplog):
    answer = f"<think>{'Let me think. ' * 20}</think>\n\n{ANSWER}"
    _, loss = measured(chats(answer), [PLAIN, altering("m.content.split('</think>')[-1]")])
    said, paired = loss.characters["texts"]["assistant"]
    assert paired == 3 * 52
    assert "of assistant messages became pairs" in caplog.text
    # What each pair stands for begins behind what was left out.
    windows = prepare_windows(
        chats(answer), [PLAIN, altering("m.content.split('</think>')[-1]")], ctx_len=200
    )
    assert max(b - a for a, b in zip(windows[0]["starts"], windows[0]["ends"], strict=True)) < 20
    assert said == 3 * (20 * 11 + 15 + 52)


def test_reasoning_that_is_kept_apart_is_a_role_of_its_own(caplog):
    texts = chats(reasoning_content="Let me think about it.")
    _, loss = measured(texts, [PLAIN, PLAIN])
    assert loss.characters["texts"]["reasoning"] == (3 * 18, 0)
    assert "of reasoning messages became pairs" in caplog.text
    _, loss = measured(texts, [PLAIN, PLAIN], chat_format="plain")
    assert loss.characters["texts"]["reasoning"].share == 1


def test_excluded_tokens_are_named_as_the_reason(caplog):
    texts = Dataset.from_dict({"text": ["the dog and the fox " * 5]})
    ids = PLAIN(texts[0]["text"])["input_ids"]
    measured(texts, [PLAIN, PLAIN], exclude_tokens=sorted(set(ids) - {ids[-2]}))
    assert "--exclude_tokens" in caplog.text


def test_a_refused_conversation_is_lost_with_the_templates_own_words(caplog):
    refusing = "{% if messages[0].content == 'no' %}{{ raise_exception('not no') }}{% endif %}"
    strict = metaspace_tokenizer(chat_template=refusing + CHATML)
    chat = chats()[0]["messages"]
    rows = [*[[{"role": "user", "content": "no"}, *chat]] * 3, chat]
    measured(Dataset.from_dict({"messages": rows}), [PLAIN, strict])
    assert "refuses the conversation (not no)" in caplog.text


def test_tool_calls_that_a_template_does_not_write_are_counted(tmp_path, caplog):
    call = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
    rows = [{"messages": chats(tool_calls=call)[0]["messages"]}] * 3
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    texts = load_texts(path)
    writing = byte_level_tokenizer(chat_template=CHATML + "{{ messages[-1].tool_calls | tojson }}")
    windows, loss = measured(texts, [PLAIN, writing])
    assert loss.extras["tool_calls"].messages == 3
    assert len(loss.extras["tool_calls"].lost_to) == 1
    assert "tool_calls in 3 messages is not read" in caplog.text
    assert '"arguments"' in writing.apply_chat_template(rows[0]["messages"], tokenize=False)
    extras = alignment_report(windows, 3, loss).extras
    assert extras is not None
    assert extras["tool_calls"]["messages"] == 3


@pytest.mark.parametrize(
    "part", [{"type": "image"}, {"type": "tool_result", "content": "Cold."}, {"type": "tool_use"}]
)
@pytest.mark.parametrize("chat_format", ["template", "plain"])
def test_contents_that_are_no_text_are_said_not_to_be_read(tmp_path, caplog, part, chat_format):
    rows = [{"messages": [{"role": "user", "content": [part, {"type": "text", "text": ANSWER}]}]}]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(rows[0]) + "\n", encoding="utf-8")
    measured(load_texts(path), [PLAIN, PLAIN], chat_format=chat_format)
    assert "contents of 1 messages is not read" in caplog.text
