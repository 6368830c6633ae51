"""Which prompts the models answer, and the texts that come of it."""

import datasets
import pytest
from datasets import Dataset, Features, Value

from sparsify_crosscoder.text.answers import (
    Wanted,
    answered_texts,
    markers_of,
    prompt_ids,
    prompt_of,
    said_in_answer,
    wanted_texts,
)
from sparsify_crosscoder.text.chat import render_chat
from sparsify_crosscoder.text.roles import NO_WRITER
from tests.support.tokenizers import ANSWERABLE, byte_level_tokenizer, metaspace_tokenizer

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Where is it?"}
OWN = {"role": "assistant", "content": "Here."}
ONE = byte_level_tokenizer(chat_template=ANSWERABLE)
PLAIN = "No one says this."


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def conversations(*rows) -> Dataset:
    """A mixture: lists are conversations, strings plain texts."""
    messages = [{"role": Value("string"), "content": Value("string")}]
    return Dataset.from_dict(
        {
            "text": [row if isinstance(row, str) else None for row in rows],
            "messages": [None if isinstance(row, str) else row for row in rows],
        },
        features=Features({"text": Value("string"), "messages": messages}),
    )


def test_a_prompt_is_a_conversation_up_to_its_last_users_turn():
    assert prompt_of([SYSTEM, USER, OWN, USER, OWN]) == [SYSTEM, USER, OWN, USER]
    assert prompt_of([USER]) == [USER]
    assert prompt_of([SYSTEM, OWN]) is None and prompt_of(PLAIN) is None and prompt_of([]) is None


@pytest.mark.parametrize(
    ("answers", "writers"),
    [
        ("A", [[0], [0], [-1], [-1], [0], [0]]),
        ("B", [[1], [1], [-1], [-1], [1], [1]]),
        ("both", [[0, 1], [0, 1], [-1], [-1], [0, 1], [0, 1]]),
        # The data set's own, A's and B's in turn; row 0 has none of its own.
        ("mix", [[0], [0], [-1], [-1], [0], [1]]),
    ],
)
def test_who_answers_which_conversation(answers, writers):
    own = [USER, OWN]
    texts = conversations([USER], own, PLAIN, [SYSTEM, OWN], own, own)
    found = wanted_texts(texts, answers, 2)
    assert found == [Wanted(row, w) for row, some in enumerate(writers) for w in some]
    part = wanted_texts(texts, answers, 2, range(4, 6))
    assert part == [one for one in found if one.row >= 4]


def test_in_a_mix_everybody_writes_a_third():
    found = wanted_texts(conversations(*[[USER, OWN]] * 30), "mix", 2)
    assert [sum(one.writer == w for one in found) for w in (-1, 0, 1)] == [10, 10, 10]
    found = wanted_texts(conversations(*[[USER]] * 30), "mix", 2)
    assert [sum(one.writer == w for one in found) for w in (-1, 0, 1)] == [0, 15, 15]


def test_answers_take_the_place_of_what_followed_the_prompt():
    texts = conversations([SYSTEM, USER, OWN], PLAIN, [USER, OWN], [USER])
    wanted = [Wanted(0, 1), Wanted(1, NO_WRITER), Wanted(2, NO_WRITER), Wanted(2, 0), Wanted(3, 0)]
    answers = {Wanted(0, 1): "There 😀.", Wanted(2, 0): "", Wanted(3, 0): "Gone."}
    found = answered_texts(texts, wanted, answers)
    assert found["writer"][:] == [1, NO_WRITER, NO_WRITER, 0]
    assert found["text"][:] == [None, PLAIN, None, None]
    assert found["messages"][0] == [SYSTEM, USER, {"role": "assistant", "content": "There 😀."}]
    assert found["messages"][2] == [USER, OWN]
    assert found["messages"][3][-1]["content"] == "Gone."
    again = answered_texts(texts, wanted, answers)
    other = answered_texts(texts, wanted, answers | {Wanted(3, 0): "Here."})
    assert again._fingerprint == found._fingerprint != other._fingerprint


def test_a_model_is_asked_in_its_template_or_in_plain_text():
    prompt = prompt_of([SYSTEM, USER, OWN, USER, OWN])
    assert prompt is not None
    asked = ONE.decode(prompt_ids(prompt, ONE))
    answered, _ = render_chat([*prompt, {"role": "assistant", "content": "Yes."}], ONE)
    assert answered.startswith(asked) and asked.endswith("<|im_start|>assistant\n")
    base = metaspace_tokenizer(bos=True)
    assert base.decode(prompt_ids(prompt, base)) == (
        "<s>Be brief.\n\nUser: Where is it?\n\nAssistant: Here.\n\nUser: Where is it?\n\nAssistant:"
    )


def test_an_answer_is_text_without_anything_that_a_template_would_take_for_its_own():
    def said(text, tokenizer=ONE):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return said_in_answer(ids, tokenizer, markers_of([ONE]))

    assert said(" It is there.\n") == "It is there."
    assert said("<|im_start|>There<|im_end|>\n<|im_start|>user\nWhy?") == "There"
    assert said("<|im_end|>") == said("") == said(" \n") == ""
    spelled = byte_level_tokenizer()
    spelled.split_special_tokens = True
    ids = spelled("a<|im_<|im_end|>end|>b", add_special_tokens=False)["input_ids"]
    assert said_in_answer(ids, ONE, markers_of([ONE])) == "ab"
    base = metaspace_tokenizer()
    assert said("one two\nUser: who\nAssistant: me", base) == "one two"
    emoji = ONE("in 1989 😀", add_special_tokens=False)["input_ids"]
    assert said_in_answer(emoji[:-1], ONE, []) == "in 1989"
