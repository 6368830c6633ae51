"""Stages: done once, gone on with, kept when their inputs change."""

import json
from pathlib import Path

import pytest

from delphi_adapters.audit.outcome import Outcome
from delphi_adapters.audit.runner import Record, bring_up, fingerprint, fingerprint_path, state


class Work:
    """Writes a file, and counts how often it is asked to."""

    def __init__(self, text: str = "made"):
        self.text, self.turns = text, 0

    def __call__(self, folder: Path) -> Outcome:
        self.turns += 1
        (folder / "out.txt").write_text(self.text, encoding="utf-8")
        return Outcome({"turns": self.turns}, [folder / "out.txt"])


def test_a_stage_is_done_once(tmp_path):
    work = Work()
    first = bring_up("cache", tmp_path, {"k": 1}, work)
    again = bring_up("cache", tmp_path, {"k": 1}, work)
    assert work.turns == 1
    assert again == first
    assert first.result == {"turns": 1}
    assert first.outputs == {"out.txt": 4}
    assert state(tmp_path / "cache", {"k": 1}) == "done"


@pytest.mark.parametrize("damage", ["removed", "cut"])
def test_a_stage_whose_outputs_are_not_as_they_were_is_taken_up_again(tmp_path, damage):
    work = Work()
    first = bring_up("cache", tmp_path, {}, work)
    if damage == "removed":
        (tmp_path / "cache" / "out.txt").unlink()
    else:
        (tmp_path / "cache" / "out.txt").write_text("mad", encoding="utf-8")
    assert state(tmp_path / "cache", {}) == "begun"
    again = bring_up("cache", tmp_path, {}, work)
    assert work.turns == 2
    assert again.fingerprint == first.fingerprint


def test_a_stage_that_was_killed_finds_what_it_left(tmp_path):
    found = []

    def killed(folder: Path) -> Outcome:
        (folder / "half.txt").write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    def going_on(folder: Path) -> Outcome:
        found.extend(path.name for path in folder.iterdir())
        return Outcome()

    with pytest.raises(KeyboardInterrupt):
        bring_up("cache", tmp_path, {"k": 1}, killed)
    assert state(tmp_path / "cache", {"k": 1}) == "begun"
    bring_up("cache", tmp_path, {"k": 1}, going_on)
    assert sorted(found) == ["half.txt", "stage.json"]


def test_what_was_made_from_other_inputs_is_kept_and_taken_back(tmp_path):
    work, other = Work("one"), Work("two")
    bring_up("cache", tmp_path, {"k": 1}, work)
    assert state(tmp_path / "cache", {"k": 2}) == "changed"
    bring_up("cache", tmp_path, {"k": 2}, other)
    assert (tmp_path / "cache" / "out.txt").read_text(encoding="utf-8") == "two"
    (kept,) = (tmp_path / "superseded").iterdir()
    assert (kept / "out.txt").read_text(encoding="utf-8") == "one"
    bring_up("cache", tmp_path, {"k": 1}, work)
    assert (tmp_path / "cache" / "out.txt").read_text(encoding="utf-8") == "one"
    assert (work.turns, other.turns) == (1, 1)
    (kept,) = (tmp_path / "superseded").iterdir()
    assert (kept / "out.txt").read_text(encoding="utf-8") == "two"


def test_the_fingerprint_follows_the_outputs_or_what_identifies_them(tmp_path):
    prints = [
        bring_up(name, tmp_path, {}, Work(text)).fingerprint
        for name, text in (("a", "x"), ("b", "x"), ("c", "y"))
    ]
    assert prints[0] == prints[1] != prints[2]
    one = bring_up("d", tmp_path, {}, lambda folder: Outcome(identity=[1]))
    two = bring_up("e", tmp_path, {}, lambda folder: Outcome(identity=[2]))
    assert one.fingerprint != two.fingerprint


def test_a_stage_that_could_not_end_is_taken_up_the_next_time(tmp_path):
    reasons = ["3 latents got no answer", None]

    def work(folder: Path) -> Outcome:
        return Outcome(unfinished=reasons.pop(0))

    first = bring_up("explain", tmp_path, {}, work)
    assert first.unfinished == "3 latents got no answer"
    assert not first.finished
    assert bring_up("explain", tmp_path, {}, work).finished
    assert not reasons


def test_a_damaged_record_is_refused(tmp_path):
    bring_up("cache", tmp_path, {}, Work())
    (tmp_path / "cache" / "stage.json").write_text('{"stage": ', encoding="utf-8")
    with pytest.raises(ValueError, match=r"stage\.json' is damaged .* delete it"):
        bring_up("cache", tmp_path, {}, Work())
    (tmp_path / "cache" / "stage.json").write_text(json.dumps({"unknown": 1}), encoding="utf-8")
    with pytest.raises(ValueError, match="damaged"):
        Record.read(tmp_path / "cache")


def test_a_changed_file_or_folder_changes_its_fingerprint(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("1", encoding="utf-8")
    before = fingerprint_path(tmp_path / "model")
    assert fingerprint_path(tmp_path / "model") == before
    (tmp_path / "model" / "weights").write_text("12", encoding="utf-8")
    assert fingerprint_path(tmp_path / "model") != before
    assert fingerprint_path("EleutherAI/not-a-path") is None


def test_fingerprints_are_those_of_earlier_versions():
    assert fingerprint({"options": {"b": 1, "a": "ü"}, "from": {}}) == "7078fe584d9d41f8"
