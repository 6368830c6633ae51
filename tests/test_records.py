"""Files of our own are checked where they are read."""

import json
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import pytest

from sparsify_crosscoder.records import Damaged, check, read_json, read_lines, reading


class Part(TypedDict):
    count: int
    names: list[str]


class More(Part, total=False):
    note: str | None


@dataclass
class Whole:
    kind: Literal["a", "b"]
    size: float
    parts: list[More]
    by_name: dict[str, int] = field(default_factory=dict)
    anything: Any = None


GOOD = {"kind": "a", "size": 2, "parts": [{"count": 1, "names": ["x"]}], "unknown": [1]}
REMEDY = "Delete it, and it is made anew."


def test_what_fits_is_returned(tmp_path):
    (tmp_path / "f").write_text(json.dumps(GOOD), encoding="utf-8")
    assert read_json(tmp_path / "f", Whole, REMEDY) == GOOD
    check({**GOOD, "anything": [None], "by_name": {"a": 1}}, Whole)
    check([1, "a"], tuple[int, str])
    check([(1, "a")], list[tuple[int, str]])  # of an object that was read


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"kind": "c"}, "kind"),
        ({"size": "2"}, "size is the text '2', not a number"),
        ({"size": float("nan")}, "size"),
        ({"size": float("inf")}, "size"),
        ({"size": True}, "size is true, not a number"),
        ({"parts": {}}, "parts is an object, not a list"),
        ({"parts": [3]}, "parts[0] is the number 3, not an object"),
        ({"parts": [{"count": 1}]}, "parts[0] has no names"),
        ({"parts": [{"count": 1.5, "names": []}]}, "parts[0].count"),
        ({"parts": [{"count": 1, "names": [None]}]}, "parts[0].names[0] is null, not a text"),
        ({"parts": [{"count": 1, "names": [], "note": 3}]}, "note is the number 3, not a text"),
        ({"by_name": {"a": "b"}}, "by_name.a"),
    ],
)
def test_what_does_not_fit_is_named(changed, said, tmp_path):
    (tmp_path / "f").write_text(json.dumps({**GOOD, **changed}), encoding="utf-8")
    with pytest.raises(Damaged) as error:
        read_json(tmp_path / "f", Whole, REMEDY)
    assert said in str(error.value) and str(tmp_path / "f") in str(error.value)
    assert str(error.value).endswith(REMEDY) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "contents",
    [b"", b"[]", b"null", b"3", b"{}", b'{"a": 1}', b'"x"', b"\xff\x00", b"[" * 100_000, b"NaN"],
)
def test_a_file_that_is_something_else_is_damaged_and_stays(contents, tmp_path):
    (tmp_path / "f").write_bytes(contents)
    with pytest.raises(Damaged, match="is damaged"):
        read_json(tmp_path / "f", Whole, REMEDY)
    assert (tmp_path / "f").read_bytes() == contents


def test_folders_missing_files_and_other_errors(tmp_path):
    with pytest.raises(Damaged, match="it is a folder"):
        read_json(tmp_path, Whole, REMEDY)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "f", Whole, REMEDY)
    with pytest.raises(Damaged, match="it has no 'scale'"), reading("x", REMEDY):
        {}["scale"]
    with pytest.raises(OSError, match="Too many open files"), reading("x", REMEDY):
        raise OSError(24, "Too many open files")


def test_only_a_last_line_may_be_cut_off(tmp_path):
    file = tmp_path / "f.jsonl"
    assert read_lines(file, Part, REMEDY) == []
    line = json.dumps({"count": 1, "names": []})
    for cut in range(len(line)):
        file.write_text(f"{line}\n{line[:cut]}", encoding="utf-8")
        assert len(read_lines(file, Part, REMEDY)) == 1
        file.write_text(f"{line[:cut]}\n{line}\n", encoding="utf-8")
        with pytest.raises(Damaged, match="line 1"):
            read_lines(file, Part, REMEDY)
    file.write_text(f"{line}\n{line}", encoding="utf-8")
    assert len(read_lines(file, Part, REMEDY)) == 2
