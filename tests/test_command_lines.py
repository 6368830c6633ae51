"""What a mistyped command line is answered, and every `--help`."""

import io
import sys

import pytest

from delphi_adapters.__main__ import COMMANDS as ADAPTERS
from sparsify_crosscoder.__main__ import COMMANDS
from sparsify_crosscoder.command_line import dispatch
from sparsify_crosscoder.commands import train

HELPS = [(COMMANDS, [name]) for name in COMMANDS]
HELPS += [(ADAPTERS, [name]) for name in ADAPTERS]
HELPS += [(COMMANDS, ["train", "--arch", arch]) for arch in ("crosscoder", "dfc", "dsf", "rdfc")]
HELPS += [(COMMANDS, ["harvest", "--arch", "rdfc"]), (COMMANDS, []), (ADAPTERS, [])]


def answer(capsys, commands, *argv: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        dispatch("command", commands, argv)
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1
    return said.err


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["topp"], "Did you mean top?"),
        (["filtr", "run"], "Did you mean filter?"),
        (["personas"], "Did you mean persona?"),
        (["top", "run", "--snipets", "3"], "--snipets 3. Did you mean --snippets?"),
        (["filter", "run", "--min_fireings=9"], "Did you mean --min_firings?"),
        (["steer", "run", "--strength", "1", "--latnets", "4"], "Did you mean --latents?"),
        (["train", "m", "d", "--partnres", "n"], "Did you mean --partners?"),
        (["train", "m", "d", "--partners", "n", "--hookpionts", "x"], "Did you mean --hookpoints?"),
        (["harvest", "m", "d", "--partners", "n", "--cach", "c", "--piars", "3"], "--pairs?"),
    ],
)
def test_a_typing_error_is_answered_with_what_was_meant(argv, meant, capsys):
    assert meant in answer(capsys, COMMANDS, *argv)


@pytest.mark.parametrize("argv", [["xyz"], ["top", "run", "--zzz"], ["top", "run", "zzz"]])
def test_nothing_is_suggested_for_what_is_like_nothing(argv, capsys):
    assert "Did you mean" not in answer(capsys, COMMANDS, *argv)


@pytest.mark.parametrize(("commands", "argv"), HELPS, ids=lambda x: " ".join(x))
def test_help_is_printed_on_any_terminal(commands, argv, monkeypatch):
    for columns, encoding in (("80", "ascii"), ("24", "utf-8")):
        monkeypatch.setenv("COLUMNS", columns)
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
        with pytest.raises(SystemExit) as stop:
            dispatch("command", commands, [*argv, "--help"])
        sys.stdout.flush()
        shown = raw.getvalue().decode(encoding)
        assert stop.value.code == 0 and shown.startswith("usage: ")
        assert len(shown.splitlines()) >= 3 and "%(" not in shown


def test_the_overview_is_printed_on_any_terminal(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with pytest.raises(SystemExit) as stop:
        train.main(["--help"])
    sys.stdout.flush()
    assert stop.value.code == 0 and b"--arch rdfc" in raw.getvalue()
