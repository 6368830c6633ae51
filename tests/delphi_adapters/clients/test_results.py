"""Answers on disk."""

import gc
import json
import os
import subprocess
import sys

import pytest

from delphi_adapters.clients import RequestRecord, ResultStore, Usage


def record(key: str, **values) -> RequestRecord:
    usage = Usage(1, 2, 3, 4)
    return RequestRecord(key, "m", f"text {key} \u2028 모델\n", "end_turn", usage, **values)


@pytest.fixture
def folder(tmp_path):
    with_answers = ResultStore(tmp_path / "store")
    for key in "abc":
        with_answers.put(record(key, attempts=2, uncertain_cost=0.25))
    with_answers.close()
    return tmp_path / "store"


def test_answers_are_there_again_with_every_field(folder):
    store = ResultStore(folder)
    assert [store.get(key) for key in "abc"] == list(store.earlier)
    assert store.get("b") == record("b", attempts=2, uncertain_cost=0.25)
    assert store.get("d") is None
    assert store.earlier_uncertain == 0.75
    store.close()


def test_an_answer_is_one_line_and_is_on_disk_at_once(folder, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(fd), real(fd)))
    store = ResultStore(folder)
    store.put(record("d"))
    lines = (folder / "answers.jsonl").read_bytes().split(b"\n")
    assert json.loads(lines[3])["key"] == "d" and lines[4:] == [b""]
    assert len(synced) == 1
    store.put(record("e"), sync=False)
    assert len(synced) == 1
    store.sync()
    assert len(synced) == 3  # both files
    store.close()


@pytest.mark.parametrize("cut", [1, 2, 40, -1])
def test_a_torn_last_line_is_removed_and_the_next_answer_is_whole(folder, cut):
    whole = (folder / "answers.jsonl").read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    torn = whole[: len(whole) - len(last)] + last[:cut]
    (folder / "answers.jsonl").write_bytes(torn)
    store = ResultStore(folder)
    assert list(store.answers) == ["a", "b"]
    assert (folder / "answers.jsonl").read_bytes() == whole[: len(whole) - len(last)]
    store.put(record("d"))
    store.close()
    assert list(ResultStore(folder).answers) == ["a", "b", "d"]


def test_a_last_line_of_zeros_is_torn_too(folder):
    with open(folder / "answers.jsonl", "ab") as file:
        file.write(b"\0" * 100 + b"\n")
    assert list(ResultStore(folder).answers) == ["a", "b", "c"]


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"key": "x"}', b"\xff"])
def test_any_other_damage_is_an_error_with_the_line_and_nothing_is_changed(folder, line):
    lines = (folder / "answers.jsonl").read_bytes().splitlines()
    lines[1] = line
    damaged = b"\n".join(lines) + b"\n"
    (folder / "answers.jsonl").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"answers\.jsonl, line 2, is not a request record"):
        ResultStore(folder)
    assert (folder / "answers.jsonl").read_bytes() == damaged


def test_fields_of_a_later_version_are_ignored(folder):
    line = {**record("d").to_json(), "new": 1}
    with open(folder / "answers.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    assert ResultStore(folder).get("d") == record("d")


def test_failures_are_kept_apart_and_are_no_answers(folder):
    store = ResultStore(folder)
    failure = RequestRecord("d", "m", error="HTTP 500: no", status=500, uncertain_cost=1.0)
    store.put(failure)
    assert store.get("d") is None and store.failures == [failure]
    store.close()
    again = ResultStore(folder)
    assert again.get("d") is None and again.failures == []
    assert again.earlier_uncertain == 1.75
    assert (
        json.loads((folder / "failures.jsonl").read_text(encoding="utf-8"))["error"]
        == "HTTP 500: no"
    )
    again.close()


def test_a_write_that_fails_leaves_the_file_as_it_was(folder, monkeypatch):
    store = ResultStore(folder)
    before = (folder / "answers.jsonl").read_bytes()

    def full(fd):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        store.put(record("d"))
    monkeypatch.undo()
    assert (folder / "answers.jsonl").read_bytes() == before
    assert store.get("d") is None
    store.put(record("e"))
    store.close()
    assert list(ResultStore(folder).answers) == ["a", "b", "c", "e"]


def test_one_process_shares_a_folder_s_store(folder, tmp_path):
    store = ResultStore.open(folder)
    assert ResultStore.open(f"{folder}/../store") is store
    assert ResultStore.open(store) is store
    assert ResultStore.open(None) is not ResultStore.open(None)
    store.close()
    other = ResultStore.open(folder)
    assert other is not store
    other.close()


def test_a_closed_store_is_not_written(folder):
    store = ResultStore(folder)
    store.close()
    with pytest.raises(ValueError, match="is closed"):
        store.put(record("d"))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no flock")
def test_two_processes_cannot_have_a_folder_open(folder):
    code = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print('ok')"
    code += "; sys.stdout.flush(); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin and other.stdout
        assert other.stdout.readline() == b"ok\n"
        with pytest.raises(BlockingIOError, match="Another process has the result store"):
            ResultStore(folder)
        other.stdin.close()
    ResultStore(folder).close()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no flock")
def test_a_store_that_nobody_holds_lets_its_folder_go(folder):
    ResultStore(folder)
    gc.collect()
    ResultStore(folder).close()


def test_a_request_is_claimed_by_one_and_the_others_hear_of_its_outcome():
    store = ResultStore()
    assert store.claim("a") is None
    first, second = store.claim("a"), store.claim("a")
    assert first is second and first is not None and not first.done()
    assert store.claim("b") is None
    store.release("a", record("a"))
    assert first.result(0) == record("a")
    assert store.claim("a") is None
