import itertools
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sparsify_crosscoder.text import windows as windows_module
from sparsify_crosscoder.text.alignment import align_tokens
from sparsify_crosscoder.text.alignment_report import alignment_report
from sparsify_crosscoder.text.chat import plain_text
from sparsify_crosscoder.text.roles import role_names
from sparsify_crosscoder.text.texts import load_texts
from sparsify_crosscoder.text.windows import cut_windows, prepare_windows
from tests.support.tokenizers import (
    CHATML,
    SENTENCES,
    byte_level_tokenizer,
    metaspace_tokenizer,
    wordpiece_tokenizer,
)

BRACKETS = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
)
PLAIN = byte_level_tokenizer(chat_template=CHATML)
WITH_BOS = metaspace_tokenizer(bos=True, chat_template="<s>" + BRACKETS)
WITH_BOS_AND_EOS = wordpiece_tokenizer()
CHAT = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "Here 😀."}]


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(numbers, key="text"):
    return [{key: f"text {number}"} for number in numbers]


def texts_of(dataset: Dataset) -> list[str]:
    assert dataset.column_names == ["text", "dataset"]
    return list(dataset["text"])


class TestLoading:
    def test_every_kind_of_file_gives_one_text_column(self, tmp_path):
        rows = Dataset.from_list([{"id": n, "text": f"text {n}"} for n in range(3)])
        write_lines(tmp_path / "a.jsonl", rows.to_list())
        (tmp_path / "a.json").write_text(json.dumps(rows.to_list()), encoding="utf-8")
        (tmp_path / "a.txt").write_text("text 0\ntext 1\ntext 2\n", encoding="utf-8")
        rows.to_csv(tmp_path / "a.csv")
        rows.to_parquet(tmp_path / "a.parquet")
        for name in ("a.jsonl", "a.json", "a.txt", "a.csv", "a.parquet"):
            texts = texts_of(load_texts(tmp_path / name))
            assert sorted(texts) == ["text 0", "text 1", "text 2"], name

    def test_folders_of_files_and_saved_datasets_are_read(self, tmp_path):
        (tmp_path / "files").mkdir()
        write_lines(tmp_path / "files" / "a.jsonl", rows_of([0, 1]))
        rows = Dataset.from_list(rows_of([0, 1]))
        rows.save_to_disk(tmp_path / "saved")
        DatasetDict(train=rows, test=rows.select([1])).save_to_disk(tmp_path / "splits")
        for folder in ("files", "saved", "splits"):
            assert sorted(texts_of(load_texts(tmp_path / folder))) == ["text 0", "text 1"], folder
        assert texts_of(load_texts(tmp_path / "splits", split="test")) == ["text 1"]
        assert texts_of(load_texts(tmp_path / "saved", split="train[1:]")) == ["text 1"]

    def test_data_args_reach_load_dataset(self, tmp_path):
        (tmp_path / "a.txt").write_text("one\ntwo\n\nthree", encoding="utf-8")
        texts = load_texts(tmp_path / "a.txt", data_args={"sample_by": "paragraph"})
        assert sorted(texts_of(texts)) == ["one\ntwo", "three"]

    def test_the_seed_decides_the_order_before_examples_are_counted(self, tmp_path):
        path = write_lines(tmp_path / "a.jsonl", rows_of(range(50)))
        first = texts_of(load_texts(path, max_examples=10))
        assert len(first) == 10
        assert first == texts_of(load_texts(path))[:10] == texts_of(load_texts(path))[:10]
        assert first != texts_of(load_texts(path, max_examples=10, shuffle_seed=1))
        assert first != [f"text {number}" for number in range(10)]

    def test_another_text_column_is_renamed(self, tmp_path):
        path = write_lines(tmp_path / "a.jsonl", rows_of([0], key="body"))
        assert texts_of(load_texts(path, text_column="body")) == ["text 0"]

    def test_conversations_come_as_messages_with_role_and_content(self, tmp_path):
        sharegpt = [
            {"from": "human", "value": "Where is it?"},
            {"from": "gpt", "value": "Here 😀."},
        ]
        for column, chat in (
            ("messages", CHAT),
            ("conversation", CHAT),
            ("conversations", sharegpt),
        ):
            path = write_lines(tmp_path / f"{column}.jsonl", [{"id": 1, column: chat}])
            texts = load_texts(path)
            assert texts.column_names == ["messages", "dataset"]
            assert texts[0]["messages"] == CHAT

    def test_equal_mixtures_alternate_until_the_first_dataset_ends(self, tmp_path):
        a = write_lines(tmp_path / "a.jsonl", rows_of(range(30)))
        b = write_lines(tmp_path / "b.jsonl", rows_of(range(100, 110)))
        texts = texts_of(load_texts(a, extra_datasets=[b]))
        from_b = [len(text) == len("text 100") for text in texts]
        assert from_b == [False, True] * 10

    def test_weights_are_the_proportions_of_a_mixture(self, tmp_path):
        a = write_lines(tmp_path / "a.jsonl", rows_of(range(100, 1000)))
        b = write_lines(tmp_path / "b.jsonl", rows_of(range(1000, 2000)))
        mixture = load_texts(a, extra_datasets=[b], weights=[3, 1], max_examples=400)
        from_a = sum(len(text) == len("text 100") for text in texts_of(mixture))
        assert len(mixture) == 400
        assert 250 < from_a < 350

    def test_plain_text_and_chat_mix_in_two_columns(self, tmp_path):
        a = write_lines(tmp_path / "a.jsonl", rows_of(range(3)))
        b = write_lines(tmp_path / "b.jsonl", [{"messages": CHAT}] * 3)
        mixture = load_texts(a, extra_datasets=[b])
        assert set(mixture.column_names) == {"text", "messages", "dataset"}
        kinds = [(row["text"] is None, row["messages"] is None) for row in mixture]
        assert kinds == [(False, True), (True, False)] * 3

    @pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, 1.0, 1.0]])
    def test_weights_that_do_not_fit_are_refused(self, tmp_path, weights):
        path = write_lines(tmp_path / "a.jsonl", rows_of([0]))
        with pytest.raises(ValueError, match="one positive number for each of the 2 datasets"):
            load_texts(path, extra_datasets=[path], weights=weights)

    @pytest.mark.parametrize("name", ["missing.jsonl", "./missing", "/no/such/folder"])
    def test_a_missing_dataset_is_named(self, name):
        with pytest.raises(FileNotFoundError, match=name):
            load_texts(name)

    def test_a_folder_without_data_is_not_found(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=str(tmp_path)):
            load_texts(tmp_path)

    def test_a_file_of_another_kind_is_refused_with_the_kinds_there_are(self, tmp_path):
        (tmp_path / "a.pdf").write_text("x", encoding="utf-8")
        with pytest.raises(ValueError, match=r"a\.pdf.*\.jsonl"):
            load_texts(tmp_path / "a.pdf")

    def test_a_broken_file_is_named(self, tmp_path):
        (tmp_path / "a.jsonl").write_text('{"text": "a"}\nnot json\n', encoding="utf-8")
        with pytest.raises(ValueError, match=r"a\.jsonl could not be read"):
            load_texts(tmp_path / "a.jsonl")

    def test_an_unknown_split_is_refused_with_those_there_are(self, tmp_path):
        path = write_lines(tmp_path / "a.jsonl", rows_of([0]))
        Dataset.from_list(rows_of([0])).save_to_disk(tmp_path / "saved")
        DatasetDict(test=Dataset.from_list(rows_of([0]))).save_to_disk(tmp_path / "splits")
        with pytest.raises(ValueError, match=r'Unknown split "valid".*train'):
            load_texts(path, split="valid")
        with pytest.raises(ValueError, match=r'Unknown split "train".*test'):
            load_texts(tmp_path / "splits")

    @pytest.mark.parametrize("content", ["", "\n"])
    def test_an_empty_file_is_refused(self, tmp_path, content):
        (tmp_path / "a.jsonl").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=r"a\.jsonl"):
            load_texts(tmp_path / "a.jsonl")

    @pytest.mark.parametrize(
        "row", [{"text": " \n"}, {"text": None}, {"messages": [{"role": "user", "content": " "}]}]
    )
    def test_a_dataset_of_blank_texts_is_refused(self, tmp_path, row):
        path = write_lines(tmp_path / "a.jsonl", [row] * 2)
        with pytest.raises(ValueError, match=r"a\.jsonl: all texts .* blank"):
            load_texts(path)

    def test_a_missing_text_column_is_refused_with_the_columns_there_are(self, tmp_path):
        path = write_lines(tmp_path / "a.jsonl", [{"id": 1, "body": "x"}])
        with pytest.raises(ValueError, match=r"no column 'text', only id, body.*--text_column"):
            load_texts(path)

    def test_a_column_of_numbers_is_not_text(self, tmp_path):
        path = write_lines(tmp_path / "a.jsonl", [{"text": 1}])
        with pytest.raises(ValueError, match="'text' holds int64, not text"):
            load_texts(path)

    @pytest.mark.parametrize("content", [{"text": ["a", "b"]}, [{"text": ["a"]}, {"text": []}]])
    def test_lists_of_texts_are_told_how_to_become_rows(self, tmp_path, content):
        path = tmp_path / "a.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(ValueError, match=r"lists of strings, .* a row of its own"):
            load_texts(path)

    @pytest.mark.parametrize(
        "rows",
        [[["a", "b"]], [["a"], None], [{"a": "b"}], ["a", 1], [1.5], [True], [[1]], [["a"], "b"]],
    )
    def test_nor_are_values_of_other_kinds(self, tmp_path, rows):
        path = write_lines(tmp_path / "a.jsonl", [{"text": value} for value in rows])
        with pytest.raises(ValueError, match=r"a\.jsonl.*'text'"):
            load_texts(path)

    @pytest.mark.parametrize("write", [json.dumps, repr])
    @pytest.mark.parametrize("column", ["messages", "conversation", "conversations"])
    def test_conversations_stored_as_strings_are_conversations(self, tmp_path, write, column):
        path = write_lines(tmp_path / "a.jsonl", [{column: write(CHAT)}, {column: None}])
        Dataset.from_list([{column: write(CHAT)}]).to_csv(tmp_path / "a.csv")
        assert sorted(load_texts(path)["messages"], key=len) == [[], CHAT]
        assert load_texts(tmp_path / "a.csv")[0]["messages"] == CHAT

    def test_a_transcript_is_text_only_if_it_is_asked_for(self, tmp_path):
        path = write_lines(tmp_path / "a.jsonl", [{"conversation": "A: Hi!\nB: Hi."}])
        with pytest.raises(ValueError, match=r"plain text, not messages.*--text_column conv"):
            load_texts(path)
        assert texts_of(load_texts(path, text_column="conversation")) == ["A: Hi!\nB: Hi."]

    def test_chats_in_a_column_of_text_are_warned_of(self, tmp_path, caplog):
        path = write_lines(tmp_path / "a.jsonl", [{"text": json.dumps(CHAT)}])
        assert texts_of(load_texts(path)) == [json.dumps(CHAT)]
        assert "conversations as JSON" in caplog.text

    def test_both_spellings_in_one_table_are_read(self, tmp_path):
        nothing = {"role": None, "content": None, "from": None, "value": None}
        sharegpt = [{"from": "human", "value": CHAT[0]["content"]}]
        rows = [
            {"conversations": [{**nothing, **message} for message in chat]}
            for chat in (CHAT, sharegpt)
        ]
        Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
        path = write_lines(tmp_path / "a.jsonl", [{"messages": CHAT}, {"messages": sharegpt}])
        for texts in (load_texts(tmp_path / "a.parquet"), load_texts(path)):
            assert sorted(texts["messages"], key=len) == [CHAT[:1], CHAT]

    def test_rows_of_mixed_shapes_are_read_each_as_it_is(self, tmp_path):
        shapes = [
            CHAT,
            json.dumps(CHAT),
            {"role": [m["role"] for m in CHAT], "content": [m["content"] for m in CHAT]},
            [{**CHAT[0], "content": ["Where is", " it?"]}, None, CHAT[1]],
        ]
        for number, shape in enumerate(shapes):
            path = write_lines(tmp_path / f"{number}.jsonl", [{"messages": shape}])
            assert load_texts(path)[0]["messages"] == CHAT
        path = write_lines(tmp_path / "all.jsonl", [{"messages": shape} for shape in shapes])
        assert list(load_texts(path)["messages"]) == [CHAT] * 4

    @pytest.mark.parametrize(
        "shape",
        [["hi", "you"], [[CHAT]], [{"role": "user", "content": 1}], [{"who": "a", "said": "b"}]],
    )
    def test_a_conversation_of_unknown_shape_is_refused_with_its_row(self, tmp_path, shape):
        rows = [{"messages": CHAT}] * 3 + [{"messages": shape}]
        path = write_lines(tmp_path / "a.jsonl", rows)
        with pytest.raises(ValueError, match=r"a\.jsonl, column 'messages', row 3"):
            load_texts(path)

    def test_extras_of_one_dataset_leave_room_in_the_others_of_a_mixture(self, tmp_path):
        call = [{"function": {"name": "f", "arguments": "{}"}}]
        tools = [{"type": "function", "function": {"name": "f"}}]
        calling = [CHAT[0], {**CHAT[1], "tool_calls": call}]
        a = write_lines(tmp_path / "a.jsonl", [{"messages": calling, "tools": json.dumps(tools)}])
        b = write_lines(tmp_path / "b.jsonl", [{"messages": CHAT}])
        c = write_lines(tmp_path / "c.jsonl", rows_of([0]))
        mixture = load_texts(a, extra_datasets=[b, c])
        kinds = [row["messages"] and row["messages"][1]["extras"] for row in mixture]
        assert json.loads(kinds[0]) == {"tool_calls": call}
        assert kinds[1:] == [None, None]
        assert json.loads(mixture[0]["messages"][0]["extras"]) == {"conversation": {"tools": tools}}
        prepare_windows(mixture, [PLAIN, WITH_BOS], ctx_len=64)

    def test_a_tokenised_dataset_is_refused_with_the_reason(self, tmp_path):
        path = write_lines(tmp_path / "a.jsonl", [{"input_ids": [1, 2]}])
        with pytest.raises(ValueError, match=r"tokenised already .* the text itself"):
            load_texts(path)

    def test_a_streamed_dataset_is_refused_with_the_remedy(self, tmp_path):
        path = write_lines(tmp_path / "a.jsonl", rows_of([0]))
        with pytest.raises(ValueError, match=r"Do not stream.*train\[:10000\]"):
            load_texts(path, data_args={"streaming": True})


def as_texts(*texts: str) -> Dataset:
    return Dataset.from_dict({"text": list(texts)})


def whole_text_pairs(text, tokenizers):
    """The alignment of the whole text as (token id per source, end), without window bounds."""
    alignment = align_tokens(text, tokenizers)
    ids = [tokenizer(text)["input_ids"] for tokenizer in tokenizers]
    return [
        (*(read[index] for read, index in zip(ids, pair, strict=True)), end)
        for *pair, end in zip(*alignment.indices, alignment.ends, strict=True)
    ]


def window_pairs(window, sources):
    ids = [[window[f"input_ids_{s}"][i] for i in window[f"pairs_{s}"]] for s in range(sources)]
    return list(zip(*ids, window["ends"], strict=True))


class TestWindows:
    def test_the_columns_are_exactly_those_of_a_window(self):
        windows = prepare_windows(as_texts(SENTENCES[0]), [PLAIN, WITH_BOS], ctx_len=16)
        numbers = datasets.Sequence(datasets.Value("int32"))
        assert windows.features == datasets.Features(
            {
                "text_id": datasets.Value("int64"),
                "num_pairs": datasets.Value("int32"),
                "input_ids_0": numbers,
                "input_ids_1": numbers,
                "pairs_0": numbers,
                "pairs_1": numbers,
                "starts": numbers,
                "ends": numbers,
                "content_tokens_0": datasets.Value("int32"),
                "content_tokens_1": datasets.Value("int32"),
                "dropped_first": datasets.Value("int32"),
                "dropped_excluded": datasets.Value("int32"),
            }
        )

    @pytest.mark.parametrize("ctx_len", [6, 200])
    def test_a_pair_begins_where_the_one_before_it_ends(self, ctx_len):
        text = SENTENCES[1]
        windows = prepare_windows(as_texts(text), [WITH_BOS, WITH_BOS], ctx_len=ctx_len)
        spans = [
            span
            for window in windows
            for span in zip(window["starts"], window["ends"], strict=True)
        ]
        assert spans[0][0] == 0 and spans[-1][1] == len(text)
        assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))

    def test_one_window_is_the_whole_text_as_the_model_reads_it(self):
        text = SENTENCES[1]
        (window,) = prepare_windows(as_texts(text), [PLAIN, WITH_BOS], ctx_len=200)
        assert window["input_ids_0"] == PLAIN(text)["input_ids"]
        assert window["input_ids_1"] == WITH_BOS(text)["input_ids"]
        # The first token is not paired where nothing precedes it.
        assert window_pairs(window, 2) == whole_text_pairs(text, [PLAIN, WITH_BOS])[1:]

    def test_tokens_after_the_last_pair_are_left_out(self):
        (window,) = prepare_windows(as_texts("the dog \n\n"), [PLAIN, WITH_BOS], ctx_len=200)
        assert window["input_ids_0"] == PLAIN("the dog")["input_ids"]
        assert window["pairs_0"][-1] == len(window["input_ids_0"]) - 1

    @settings(deadline=None)
    @given(st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=6), st.integers(12, 40))
    def test_windows_hold_every_pair_of_the_text_once(self, sentences, ctx_len):
        sources = [PLAIN, WITH_BOS, WITH_BOS_AND_EOS]
        text = "\n".join(sentences)
        windows = list(prepare_windows(as_texts(text), sources, ctx_len=ctx_len))
        expected = whole_text_pairs(text, sources)
        pairs = [pair for window in windows for pair in window_pairs(window, 3)]
        assert set(pairs) <= set(expected)
        assert pairs == [pair for pair in expected if pair in set(pairs)]
        # Only a pair that would have been the first token of a window is missing.
        assert len(expected) - len(pairs) <= len(windows)
        for window in windows:
            assert window["num_pairs"] == len(window["ends"]) > 0
            for source in range(3):
                ids, index = window[f"input_ids_{source}"], window[f"pairs_{source}"]
                assert len(ids) <= ctx_len
                assert index[0] > 0
                assert index[-1] < len(ids)
                assert index == sorted(set(index))
            assert window["input_ids_1"][0] == WITH_BOS.bos_token_id
            assert window["input_ids_2"][0] == WITH_BOS_AND_EOS.bos_token_id
            assert WITH_BOS_AND_EOS.eos_token_id not in window["input_ids_2"]

    def test_windows_follow_each_other_without_a_gap(self):
        text = " ".join(SENTENCES)
        windows = list(prepare_windows(as_texts(text), [PLAIN, WITH_BOS], ctx_len=20))
        assert len(windows) > 10
        read = [id for window in windows for id in window["input_ids_0"]]
        assert read == PLAIN(text)["input_ids"][: len(read)]
        assert len(read) > len(PLAIN(text)["input_ids"]) - 5
        read = [id for window in windows for id in window["input_ids_1"][1:]]
        assert read == WITH_BOS(text)["input_ids"][1 : len(read) + 1]

    def test_windows_are_cut_behind_the_last_pair_that_fits_every_source(self):
        # Windows hold four tokens of source 0 and three of source 1, where pair 2 does not fit.
        indices = [[0, 2, 3, 5], [1, 2, 4, 5]]
        windows = cut_windows([np.array(index) for index in indices], [4, 3])
        assert windows == [(0, 2, [0, 0]), (2, 4, [3, 3])]

    def test_a_gap_longer_than_a_window_is_passed_over(self):
        spaces = " \t" * 40
        text = f"the dog{spaces}the fox the"
        windows = list(prepare_windows(as_texts(text), [PLAIN, WITH_BOS], ctx_len=10))
        ends = [end for window in windows for end in window["ends"]]
        assert ends[-1] == len(text)
        assert text.index("dog") + 3 in ends
        assert max(len(window["input_ids_0"]) for window in windows) <= 10

    def test_text_ids_are_row_numbers_and_blank_rows_have_no_window(self):
        texts = as_texts(SENTENCES[0], " \n", "", SENTENCES[2])
        windows = prepare_windows(texts, [PLAIN, WITH_BOS], ctx_len=16)
        ids = list(windows["text_id"])
        assert set(ids) == {0, 3}
        assert ids == sorted(ids)

    def test_excluded_tokens_of_the_first_source_are_not_paired(self):
        texts = as_texts(SENTENCES[0])
        comma = PLAIN(",")["input_ids"][0]
        sources = [PLAIN, WITH_BOS]
        (every,) = prepare_windows(texts, sources, ctx_len=200)
        (without,) = prepare_windows(texts, sources, ctx_len=200, exclude_tokens=[comma])
        assert window_pairs(without, 2) == [p for p in window_pairs(every, 2) if p[0] != comma]
        assert without["num_pairs"] == every["num_pairs"] - 1
        assert without["input_ids_0"] == every["input_ids_0"]

    def test_several_processes_give_the_same_windows(self):
        texts = as_texts(*SENTENCES)
        one = prepare_windows(texts, [PLAIN, WITH_BOS], ctx_len=16)
        two = prepare_windows(texts, [PLAIN, WITH_BOS], ctx_len=16, num_proc=2)
        assert two.to_list() == one.to_list()

    def test_texts_are_encoded_in_groups_without_a_difference(self, monkeypatch):
        texts = as_texts(*SENTENCES, "", *SENTENCES)
        at_once = prepare_windows(texts, [PLAIN, WITH_BOS], ctx_len=16).to_list()
        monkeypatch.setattr(windows_module, "_CHARACTERS_AT_ONCE", 150)
        assert prepare_windows(texts, [PLAIN, WITH_BOS], ctx_len=16).to_list() == at_once

    def test_a_context_without_room_for_a_pair_is_refused(self):
        with pytest.raises(ValueError, match="`ctx_len` must be at least 2"):
            prepare_windows(as_texts("the dog"), [PLAIN, WITH_BOS], ctx_len=1)

    def test_texts_in_which_nothing_aligns_are_refused(self):
        with pytest.raises(ValueError, match="No position in any of the 2 texts"):
            prepare_windows(as_texts(" ", "\n"), [PLAIN, WITH_BOS], ctx_len=16)

    def test_a_dataset_without_text_is_refused(self):
        with pytest.raises(ValueError, match=r"\['body'\]"):
            prepare_windows(Dataset.from_dict({"body": ["a"]}), [PLAIN, WITH_BOS], ctx_len=16)


class TestChatWindows:
    def test_only_the_messages_align_each_in_its_own_template(self):
        chats = Dataset.from_dict({"messages": [CHAT]})
        (window,) = prepare_windows(chats, [PLAIN, WITH_BOS], ctx_len=200)
        plain = plain_text(CHAT)
        rendered = [
            tokenizer.decode(window[f"input_ids_{source}"])
            for source, tokenizer in enumerate([PLAIN, WITH_BOS])
        ]
        # Reading ends behind the last pair, so what the template puts there is left out.
        whole = PLAIN.apply_chat_template(CHAT, tokenize=False)
        assert rendered[0] == whole[: whole.rindex(".") + 1]
        assert rendered[1] == "<s>[user] Where is it?[assistant] Here 😀."
        words = [plain[:end].split()[-1] for end in window["ends"]]
        assert set(words) >= {"Where", "is", "it?", "Here", "😀."}
        assert not {"user", "assistant"} & set(plain.split())
        for source, tokenizer in enumerate([PLAIN, WITH_BOS]):
            for index, end in zip(window[f"pairs_{source}"], window["ends"], strict=True):
                so_far = tokenizer.decode(window[f"input_ids_{source}"][: index + 1])
                assert so_far.endswith(plain[:end].split("\n\n")[-1])

    def test_words_of_the_template_do_not_align_even_where_templates_are_equal(self):
        first = byte_level_tokenizer(chat_template=BRACKETS)
        second = metaspace_tokenizer(chat_template=BRACKETS)
        chats = Dataset.from_dict({"messages": [CHAT]})
        (window,) = prepare_windows(chats, [first, second], ctx_len=200)
        assert window["ends"] == sorted(set(window["ends"]))
        for index, end in zip(window["pairs_0"], window["ends"], strict=True):
            so_far = first.decode(window["input_ids_0"][: index + 1])
            assert so_far.endswith("] " + plain_text(CHAT)[:end].split("\n\n")[-1])

    def test_the_first_special_token_is_there_once_in_every_window(self):
        chats = Dataset.from_dict({"messages": [CHAT]})
        windows = list(prepare_windows(chats, [PLAIN, WITH_BOS], ctx_len=14))
        assert len(windows) > 1
        for window in windows:
            ids = window["input_ids_1"]
            assert ids[0] == WITH_BOS.bos_token_id
            assert WITH_BOS.bos_token_id not in ids[1:]

    def test_the_plain_format_reads_the_contents_alone(self):
        chats = Dataset.from_dict({"messages": [CHAT]})
        sources = [byte_level_tokenizer(), metaspace_tokenizer()]
        as_chat = prepare_windows(chats, sources, ctx_len=200, chat_format="plain")
        as_text = prepare_windows(as_texts(plain_text(CHAT)), sources, ctx_len=200)
        assert as_chat.remove_columns(["roles", "writers"]).to_list() == as_text.to_list()
        (window,) = as_chat
        assert set(role_names(window["roles"])) == {"user", "assistant"}

    def test_plain_rows_and_chat_rows_of_a_mixture_are_read_each_its_way(self):
        features = datasets.Features(
            {
                "text": datasets.Value("string"),
                "messages": [
                    {"role": datasets.Value("string"), "content": datasets.Value("string")}
                ],
            }
        )
        rows = {"text": ["the dog", None], "messages": [None, CHAT]}
        mixture = Dataset.from_dict(rows, features=features)
        windows = prepare_windows(mixture, [PLAIN, WITH_BOS], ctx_len=200).to_list()
        (text,) = prepare_windows(as_texts("the dog"), [PLAIN, WITH_BOS], ctx_len=200)
        (chat,) = prepare_windows(
            Dataset.from_dict({"messages": [CHAT]}), [PLAIN, WITH_BOS], ctx_len=200
        )
        unsaid = {"roles": [0, 0], "writers": [-1, -1]}
        assert windows == [text | unsaid, {**chat, "text_id": 1}]

    def test_a_conversation_that_a_template_refuses_is_left_out(self, caplog):
        strict = metaspace_tokenizer(chat_template=NO_SYSTEM)
        chats = Dataset.from_dict({"messages": [[{"role": "system", "content": "Hi there"}], CHAT]})
        windows = prepare_windows(chats, [PLAIN, strict], ctx_len=200)
        assert list(windows["text_id"]) == [1]
        assert "no system" in caplog.text

    def test_a_missing_chat_template_is_refused_before_anything_is_read(self):
        chats = Dataset.from_dict({"messages": [CHAT]})
        with pytest.raises(ValueError, match="--chat_format plain"):
            prepare_windows(chats, [PLAIN, WITH_BOS_AND_EOS], ctx_len=200)

    def test_an_unknown_chat_format_is_refused(self):
        with pytest.raises(ValueError, match="'raw'"):
            prepare_windows(as_texts("a b"), [PLAIN, WITH_BOS], ctx_len=16, chat_format="raw")


class TestCaching:
    @pytest.fixture
    def texts(self, tmp_path):
        return load_texts(write_lines(tmp_path / "a.jsonl", [{"text": s} for s in SENTENCES]))

    def test_the_same_windows_are_read_from_the_cache(self, texts):
        first = prepare_windows(texts, [PLAIN, WITH_BOS], ctx_len=16)
        PLAIN(["a", "b c"], padding=True, truncation=True, max_length=4)  # changes its state
        again = prepare_windows(
            texts, [byte_level_tokenizer(chat_template=CHATML), WITH_BOS], ctx_len=16
        )
        assert again._fingerprint == first._fingerprint
        assert again.cache_files == first.cache_files != []

    @pytest.mark.parametrize(
        "change",
        [
            {"ctx_len": 17},
            {"exclude_tokens": [5]},
            {"chat_format": "plain"},
            {"tokenizers": [WITH_BOS, PLAIN]},
            {"tokenizers": [PLAIN, metaspace_tokenizer(bos=False)]},
            {"tokenizers": [byte_level_tokenizer(chat_template=BRACKETS), WITH_BOS]},
        ],
    )
    def test_anything_that_changes_the_windows_changes_the_fingerprint(self, texts, change):
        usual = {"tokenizers": [PLAIN, WITH_BOS], "ctx_len": 16}
        first = prepare_windows(texts, **usual)
        assert prepare_windows(texts, **{**usual, **change})._fingerprint != first._fingerprint

    def test_loading_twice_gives_the_same_fingerprint(self, tmp_path, texts):
        path = tmp_path / "a.jsonl"
        assert load_texts(path)._fingerprint == texts._fingerprint
        mixtures = [load_texts(path, extra_datasets=[path], weights=[2, 1]) for _ in range(2)]
        assert mixtures[0]._fingerprint == mixtures[1]._fingerprint


class TestReport:
    def test_counts_worked_out_by_hand(self):
        # Every word of "the dog the fox" is one token or more; the two sources are equal.
        texts = as_texts("the dog", " ", "the dog\n the")
        windows = prepare_windows(texts, [PLAIN, PLAIN], ctx_len=200)
        report = alignment_report(windows, len(texts))
        ids = [PLAIN(text)["input_ids"] for text in ("the dog", "the dog\n the")]
        content = sum(1 for row in ids for id in row if PLAIN.decode([id]).strip())
        assert report.texts == 3
        assert report.texts_without_pairs == 1
        assert report.windows == 2
        assert report.pairs == content - 2  # the first token of each text
        assert report.tokens == [sum(map(len, ids))] * 2
        assert report.aligned_fraction == [report.pairs / content] * 2
        assert report.dropped == {"first token of a window": 2, "excluded token": 0}
        excluded = prepare_windows(texts, [PLAIN, PLAIN], ctx_len=200, exclude_tokens=ids[0][1:2])
        assert alignment_report(excluded, 3).dropped["excluded token"] == sum(
            row[1:].count(ids[0][1]) for row in ids
        )

    def test_content_behind_the_last_pair_is_counted(self):
        words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        by_word = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
        # To the first source "</s>" is a special token, to the second a word like others.
        (window,) = prepare_windows(as_texts("the dog </s>"), [PLAIN, by_word], ctx_len=200)
        assert window["ends"] == [len("the dog")]
        assert window["content_tokens_0"] == len(PLAIN("the dog")["input_ids"])
        assert window["content_tokens_1"] == 3

    def test_each_dataset_of_a_mixture_has_its_own_fraction(self, tmp_path):
        plain = write_lines(tmp_path / "plain.jsonl", [{"text": "the dog"}] * 20)
        # Only the first source takes "</s>" for a special token and not for text.
        words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        by_word = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
        special = write_lines(tmp_path / "special.jsonl", [{"text": "the </s> </s> dog"}] * 20)
        texts = load_texts(plain, extra_datasets=[special, special])
        windows = prepare_windows(texts, [PLAIN, by_word], ctx_len=200)
        report = alignment_report(windows, len(texts))
        names = [str(plain), f"{special} (1)", f"{special} (2)"]
        assert list(report.aligned_fraction_per_dataset) == names
        per_dataset = [report.aligned_fraction_per_dataset[name][1] for name in names]
        assert per_dataset == [1 / 2, 1 / 4, 1 / 4]  # "dog" of two words, and of four
        counts = np.bincount(texts["dataset"])
        total = 2 * counts[0] + 4 * counts[1] + 4 * counts[2]
        assert report.aligned_fraction[1] == len(texts) / total

    def test_a_selection_of_windows_is_counted_alone(self):
        windows = prepare_windows(as_texts(*SENTENCES), [PLAIN, WITH_BOS], ctx_len=16)
        report = alignment_report(windows.shuffle(seed=0).select(range(3)), len(SENTENCES))
        assert report.windows == 3
        assert report.pairs == sum(windows.shuffle(seed=0)["num_pairs"][:3])
