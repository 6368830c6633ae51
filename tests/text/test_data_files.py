import bz2
import gzip
import json
import lzma
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from datasets import Dataset, config

from sparsify_crosscoder.text.texts import load_texts

MINE = [{"text": "mine 0"}, {"text": "mine 1"}]


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def lines(rows=MINE) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(path: Path, content: str | bytes = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content or lines()
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(path, **options) -> list[str]:
    return sorted(load_texts(path, **options)["text"])


@pytest.mark.parametrize(
    ("asked", "beside"),
    [
        ("run[1].jsonl", "run1.jsonl"),
        ("what?.jsonl", "whatX.jsonl"),
        ("all*.jsonl", "allX.jsonl"),
        ("v[12]/a.jsonl", "v1/a.jsonl"),
        ("zip:a.jsonl::b.jsonl", "b.jsonl"),
        ("https:x/a.jsonl", "a.jsonl"),
        ("~a #1 100%.jsonl", "a.jsonl"),
        ("-a {b,c} 😀!.jsonl", "b.jsonl"),
        ("costs $HOME ${PATH}.jsonl", "a.jsonl"),
        ("$HOME/a.jsonl", "a.jsonl"),
    ],
)
def test_the_name_of_a_file_is_no_pattern_and_no_address(tmp_path, monkeypatch, asked, beside):
    write(tmp_path / beside, lines([{"text": "other"}]))
    path = write(tmp_path / asked)
    monkeypatch.chdir(tmp_path)
    assert read(path) == read(asked) == ["mine 0", "mine 1"]


@pytest.mark.parametrize("folder", ["v[12]", "what?", "a::b", "all*", "in $HOME"])
def test_nor_is_that_of_a_folder(tmp_path, folder):
    for other in ("v1", "whatX", "a", "allX", "in"):
        write(tmp_path / other / "a.jsonl", lines([{"text": "other"}]))
    write(tmp_path / folder / "deep [1]" / "train.jsonl")
    write(tmp_path / folder / "deep [1]" / "test.jsonl", lines([{"text": "test"}]))
    write(tmp_path / folder / ".hidden.jsonl", lines([{"text": "hidden"}]))
    assert read(tmp_path / folder) == ["mine 0", "mine 1"]
    assert read(tmp_path / folder, split="test") == ["test"]
    Dataset.from_list(MINE).save_to_disk(tmp_path / "saved" / "plain")
    (tmp_path / "saved" / "plain").rename(tmp_path / "saved" / folder)
    assert read(tmp_path / "saved" / folder) == ["mine 0", "mine 1"]


def test_a_file_of_an_odd_name_that_changes_is_read_again(tmp_path):
    path = write(tmp_path / "a::[1].jsonl.gz", gzip.compress(lines().encode()))
    assert read(path) == ["mine 0", "mine 1"]
    write(path, gzip.compress(lines([{"text": "another"}]).encode()))
    assert read(path) == ["another"]


def test_compressed_and_upper_case_endings_are_read(tmp_path):
    data = lines().encode()
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    table = b"text\nmine 0\nmine 1\n"
    files = {
        "a.JSONL": data,
        "b.Txt": b"mine 0\nmine 1\n",
        "c.jsonl.gz": gzip.compress(data),
        "d.json.GZ": gzip.compress(json.dumps(MINE).encode()),
        "e.csv.gz": gzip.compress(table),
        "f.jsonl.xz": lzma.compress(data),
        "g.txt.bz2": bz2.compress(b"mine 0\nmine 1\n"),
        "h.jsonl.zst": sink.getvalue().to_pybytes(),
        "i.ndjson": data,
        "j.tsv": b"id\ttext\n0\tmine 0\n1\tmine 1\n",
        "k.txt": b"\xef\xbb\xbfmine 0\nmine 1\n",
        "l.csv": b"\xef\xbb\xbf" + table,
        "m.jsonl": b"\xef\xbb\xbf" + data,
    }
    for name, content in files.items():
        assert read(write(tmp_path / name, content)) == ["mine 0", "mine 1"], name
    Dataset.from_list(MINE).to_parquet(tmp_path / "n.PARQUET")
    assert read(tmp_path / "n.PARQUET") == ["mine 0", "mine 1"]


PARQUET = b"PAR1" + bytes(40)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
DAMAGED = {
    "a.jsonl": (PARQUET, "a parquet file: rename"),
    "b.parquet": (lines().encode(), "no parquet file"),
    "c.parquet": (PARQUET, "damaged"),
    "d.jsonl.gz": (gzip.compress(lines().encode() * 99)[:-20], "cannot be unpacked"),
    "e.jsonl.gz": (lines().encode(), "not compressed"),
    "f.csv": ("text\ncaf\u00e9\n".encode("latin-1"), "not utf-8.*0xe9.*encoding=latin-1"),
    "g.txt": ("caf\u00e9\n".encode("latin-1"), "not utf-8"),
    "h.jsonl": ('{"text": "caf\u00e9"}\n'.encode("latin-1"), "not UTF-8"),
    "i.jsonl": (lines().encode("utf-16"), "UTF-16"),
    "j.parquet": (POINTER, "git lfs pull"),
    "k.txt": (POINTER, "git lfs pull"),
    "l.jsonl": (b'{"text": "a"}\n{"text": "b\n', "line 2 is not JSON"),
    "m.json": (b"[1, 2", "JSON"),
    "n.jsonl": (b"<!DOCTYPE html><html></html>", "a web page"),
    "o.txt": (b" ", "blank"),
    "p.csv": (b'text,b\n"a\n', "p.csv"),
    "r.json": (b"null", "null for a row, in line 1"),
    "s.json": (b'[null, {"text": "a"}]', "null for a row"),
    "t.jsonl": (lines().encode() + b"null\n" + lines().encode(), "null for a row, in line 3"),
    "u.txt": ("mine 0\n".encode("utf-32"), "UTF-32"),
    "v.csv": (b"text\n", "is empty: there is no row"),
    "q.arrow": (b"ARROW1\0\0" + bytes(20), "damaged"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_file_that_is_not_what_it_ends_in_is_named_in_one_line(tmp_path, name):
    content, said = DAMAGED[name]
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=said) as error:
        load_texts(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_in_a_folder_the_damaged_file_is_named(tmp_path):
    write(tmp_path / "data" / "a.jsonl")
    bad = write(tmp_path / "data" / "b.jsonl", b'{"text": 1\n')
    with pytest.raises(ValueError, match=str(bad)):
        load_texts(tmp_path / "data")
    write(bad, POINTER)
    with pytest.raises(ValueError, match=rf"{bad} is a pointer of git-lfs"):
        load_texts(tmp_path / "data")


def test_upper_case_and_compressed_endings_are_read_in_folders_too(tmp_path):
    for name in ("a.txt", "a.TXT", "a.Txt", "b.TXT.GZ"):
        content = f"from {name}\n".encode()
        write(tmp_path / "d" / name, gzip.compress(content) if name.endswith("GZ") else content)
    assert read(tmp_path / "d") == ["from a.TXT", "from a.Txt", "from a.txt", "from b.TXT.GZ"]
    write(tmp_path / "bom" / "a.txt", b"\xef\xbb\xbfmine 0\nmine 1\n")
    write(tmp_path / "new\nline" / "a.jsonl")
    for folder in ("bom", "new\nline"):
        assert read(tmp_path / folder) == ["mine 0", "mine 1"]


def test_files_of_another_kind_in_a_folder_are_said_to_be_left_out(tmp_path, caplog):
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path / "d" / name)
    load_texts(tmp_path / "d")
    assert not caplog.records
    write(tmp_path / "d" / "c.csv", "text\nother\n")
    assert "other" not in read(tmp_path / "d")
    assert "read as json are read; left out: c.csv." in caplog.text


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "d/a.csv"])
def test_words_that_pandas_takes_for_missing_are_texts(tmp_path, name):
    write(tmp_path / name, 'text\nNA\nnull\nNone\n""\nfound\n')
    path = tmp_path / name.partition("/")[0]
    texts = [text for text in load_texts(path)["text"] if text]
    assert sorted(texts) == ["NA", "None", "found", "null"]
    found = [text for text in load_texts(path, data_args="na_values=found")["text"] if text]
    assert "found" not in found


def test_all_splits_of_a_saved_dataset_are_read_together(tmp_path):
    halves = {"train": Dataset.from_list(MINE[:1]), "test": Dataset.from_list(MINE[1:])}
    datasets.DatasetDict(halves).save_to_disk(tmp_path / "d")
    assert read(tmp_path / "d", split="all") == ["mine 0", "mine 1"]


def test_files_with_different_columns_are_called_so(tmp_path):
    write(tmp_path / "d" / "a.jsonl")
    write(tmp_path / "d" / "b.jsonl", lines([{"text": "b", "more": 1}]))
    with pytest.raises(ValueError, match="not all of its rows have the same columns"):
        load_texts(tmp_path / "d")


@pytest.mark.parametrize("name", ["", "  "])
def test_no_name_is_not_the_folder_at_hand(tmp_path, monkeypatch, name):
    write(tmp_path / "a.jsonl")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="No dataset is named"):
        load_texts(name)


@pytest.mark.parametrize("name", ["a[1].jsonl", "what?", "zip://a.jsonl::b.zip", "a b", "x.CSV.gz"])
def test_what_does_not_exist_is_not_searched_for(name):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_texts(name)


def test_options_of_the_command_line_reach_the_builder(tmp_path):
    path = write(tmp_path / "a.csv", "text;id\nmine 0;1\nmine 1;2\n")
    assert read(path, data_args="sep=;,nrows=1") == ["mine 0"]
    with pytest.raises(ValueError, match="no option 'sepp'"):
        load_texts(path, data_args="sepp=;")
