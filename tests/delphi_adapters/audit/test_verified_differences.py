"""An audit whose first findings are verified, and one in which they cannot be."""

import json

import pytest

from delphi_adapters.commands.audit import main
from sparsify_crosscoder.interventions import difference_causes
from sparsify_crosscoder.interventions.cause import CauseSettings
from tests.support.shifted_model import run_of_a_shift


def listed(audit):
    return json.loads((audit / "filter" / "filter.json").read_text(encoding="utf-8"))["rows"]


def test_the_first_finding_of_an_audit_is_verified(tmp_path, capsys, monkeypatch):
    quick = CauseSettings(strengths=(1.0,), spans=("hookpoint",), random=3, chat=False)
    monkeypatch.setattr(difference_causes, "SETTINGS", quick)
    run, audit = run_of_a_shift(tmp_path), tmp_path / "audit"
    words = ["--run", str(run), "--out", str(audit), "--cache_ctx_len", "32", "--until", "filter"]
    main([*words, "--verify_differences", "1"])
    first, *others = listed(audit)
    assert not any("verification" in row for row in others)
    assert [one["kind"] for one in first["verification"]["causes"]] == ["adds", "ablates"]
    said = capsys.readouterr().out
    assert all(sentence in said for sentence in first["verification"]["sentences"])
    main(words)
    assert not any("verification" in row for row in listed(audit))


def test_of_two_families_it_says_why_nothing_is_verified(run, tmp_path, capsys):
    words = ["--run", str(run), "--out", str(tmp_path / "audit"), "--until", "filter"]
    main([*words, "--cache_ctx_len", "32", "--verify_differences", "1"])
    assert (
        "No finding is verified: --verify_differences needs two models" in capsys.readouterr().out
    )
    assert not any("verification" in row for row in listed(tmp_path / "audit"))


def test_a_number_below_zero_is_refused(run, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--run", str(run), "--out", str(tmp_path / "a"), "--verify_differences", "-1"])
    assert "--verify_differences is a number of findings, not -1" in capsys.readouterr().err
