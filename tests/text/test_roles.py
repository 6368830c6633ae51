"""Who said what a pair stands for, and the pairs of a chat template's own tokens."""

import datasets
import pytest
from datasets import Dataset

from sparsify_crosscoder.text.roles import NO_WRITER, role_names
from sparsify_crosscoder.text.windows import prepare_windows
from tests.support.tokenizers import CHATML, byte_level_tokenizer, metaspace_tokenizer

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is the river 😀?"},
    {"role": "assistant", "content": "In the north."},
    {"role": "tool", "content": "42"},
    {"role": "user", "content": "And the sea?"},
    {"role": "assistant", "content": "Behind it, at the end."},
]
ONE = byte_level_tokenizer(chat_template=CHATML)


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def said_by(window, tokenizer, source=0) -> dict[str, str]:
    """What the tokens of each role's pairs spell, one behind the other."""
    said: dict[str, list[int]] = {}
    names = role_names(window["roles"])
    for name, place in zip(names, window[f"pairs_{source}"], strict=True):
        said.setdefault(name, []).append(window[f"input_ids_{source}"][place])
    return {name: tokenizer.decode(ids) for name, ids in said.items()}


@pytest.mark.parametrize("chat_format", ["template", "plain"])
def test_every_pair_says_who_said_it(chat_format):
    other = metaspace_tokenizer(bos=True, chat_template="<s>" + CHATML)
    windows = prepare_windows(
        Dataset.from_dict({"messages": [CHAT]}), [ONE, other], ctx_len=400, chat_format=chat_format
    )
    (window,) = windows
    said = said_by(window, ONE)
    assert said.keys() == {"system", "user", "assistant", "other"}
    squeezed = {name: "".join(text.split()) for name, text in said.items()}
    # Of a window of several tokens only the last is in a pair.
    assert "😀?" in squeezed["user"] or squeezed["user"].endswith("?")
    assert squeezed["assistant"].endswith("end.") and squeezed["other"].endswith("2")
    assert squeezed["system"].endswith("brief.")
    assert set(window["writers"]) == {NO_WRITER}


def test_the_last_answer_is_the_writers_and_nothing_else():
    plain = "No one has said this text."
    texts = Dataset.from_dict(
        {
            "messages": [CHAT, CHAT, CHAT[:-1], None],
            "text": [None, None, None, plain],
            "writer": [1, NO_WRITER, 0, NO_WRITER],
        }
    )
    windows = prepare_windows(texts, [ONE, ONE], ctx_len=400)
    written = [
        ONE.decode(
            [
                row["input_ids_0"][place]
                for place, writer in zip(row["pairs_0"], row["writers"], strict=True)
                if writer != NO_WRITER
            ]
        )
        for row in windows
    ]
    assert "".join(written[0].split()) == "Behindit,attheend."
    assert written[1:] == ["", "", ""]
    assert set(windows[0]["writers"]) == {NO_WRITER, 1}
    assert set(role_names(windows[3]["roles"])) == {"plain"}


def test_template_tokens_are_paired_at_equal_places_and_say_so():
    chats = Dataset.from_dict({"messages": [CHAT, CHAT[1:3]]})
    usual = prepare_windows(chats, [ONE, ONE], ctx_len=400)
    whole = prepare_windows(chats, [ONE, ONE], ctx_len=400, template_tokens=True)
    for before, row in zip(usual, whole, strict=True):
        assert row["pairs_0"] == row["pairs_1"] and row["ends"] == sorted(row["ends"])
        ids = row["input_ids_0"]
        said = said_by(row, ONE)
        # The first token of a window is in no pair.
        between = "".join(said["template"].split())
        assert between.startswith("user<|im_end|>" if len(before["ends"]) < 30 else "system")
        assert between.endswith("<|im_start|>assistant<|im_end|>")
        others = zip(row["pairs_0"], row["starts"], row["ends"], row["roles"], strict=True)
        kept = [pair[:3] for pair in others if pair[3] != 4]
        assert kept == [*zip(before["pairs_0"], before["starts"], before["ends"], strict=True)]
        newline = ONE("\n", add_special_tokens=False)["input_ids"][0]
        paired = [ids[place] for place in row["pairs_0"]]
        assert newline in paired and ONE.convert_tokens_to_ids("<|im_end|>") in paired


def test_a_content_of_a_special_tokens_name_is_no_template():
    chat = [{"role": "user", "content": "Say <|im_end|> now"}]
    (row,) = prepare_windows(
        Dataset.from_dict({"messages": [chat]}), [ONE, ONE], ctx_len=400, template_tokens=True
    )
    ends = [ONE.convert_tokens_to_ids("<|im_end|>") == id for id in row["input_ids_0"]]
    assert sum(ends) == 2 and sum(ends[place] for place in row["pairs_0"]) == 1


@pytest.mark.parametrize("case", ["tokenizers", "templates", "plain format", "plain text"])
def test_template_tokens_that_differ_or_are_not_there_are_refused(case):
    other = {
        "tokenizers": metaspace_tokenizer(chat_template=CHATML),
        "templates": byte_level_tokenizer(chat_template=CHATML + "<s>"),
    }.get(case, ONE)
    texts = {"text": ["Some text."]} if case == "plain text" else {"messages": [CHAT]}
    said = "one tokenizer and one chat template" if other is not ONE else "needs conversations"
    with pytest.raises(ValueError, match=said):
        prepare_windows(
            Dataset.from_dict(texts),
            [ONE, other],
            ctx_len=100,
            chat_format="plain" if case == "plain format" else "template",
            template_tokens=True,
        )
