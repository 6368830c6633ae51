"""How commands end: one line and the right exit code, whatever went wrong."""

import errno
import os
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import orjson
import pyarrow as pa
import pytest
import torch
import yaml
from jinja2 import Environment
from safetensors.torch import load_file
from tokenizers import Tokenizer

from sparsify_crosscoder.__main__ import COMMANDS, main
from sparsify_crosscoder.command_line import execute
from sparsify_crosscoder.endings import UsageError, ending, in_one_line


def ended(work, capsys, **options) -> tuple[int, str]:
    """Exit code and last words of a command that does `work`."""
    with pytest.raises(SystemExit) as stop, ending("prog", **options):
        work()
    assert isinstance(stop.value.code, int)
    return stop.value.code, capsys.readouterr().err


def raising(error):
    def work():
        raise error

    return work


def test_our_own_message_is_the_line(capsys):
    assert ended(raising(ValueError("'x' is no run.")), capsys) == (
        1,
        "prog: error: 'x' is no run.\n",
    )


def test_wrong_use_ends_with_2(capsys):
    assert ended(raising(UsageError("no such device")), capsys)[0] == 2


def test_an_interrupt_says_what_goes_on_and_ends_with_130(capsys):
    code, said = ended(raising(KeyboardInterrupt()), capsys, goes_on="--resume goes on")
    assert (code, said) == (130, "prog: interrupted; --resume goes on.\n")


def deep(level):
    return deep(level + 1)


def read_safetensors(file):
    load_file(file)


def read_tokenizer(file):
    Tokenizer.from_file(str(file))


def read_pickle(file):
    torch.load(file, weights_only=True)


def read_utf8(file):
    file.read_text(encoding="utf-8")


def read_json(file):
    orjson.loads(file.read_bytes())


def read_yaml(file):
    yaml.safe_load(file.read_text(encoding="latin-1"))


def read_arrow(file):
    pa.ipc.open_file(str(file))


READERS = [
    read_safetensors,
    read_tokenizer,
    read_pickle,
    read_utf8,
    read_json,
    read_yaml,
    read_arrow,
]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("contents", [b"", b"\xff\xfe\x00{]" * 40])
def test_what_a_library_cannot_read_is_named_in_one_line(reader, contents, tmp_path, capsys):
    file = tmp_path / "a file"
    file.write_bytes(contents)
    if reader in (read_utf8, read_yaml) and not contents:
        return  # nothing is text, and no YAML is none

    # What a command of ours does: the frame that reads holds the file's name.
    code, said = ended(lambda: reader(file), capsys)
    assert code == 1 and said.startswith("prog: error: ") and "Traceback" not in said
    assert said.count("\n") == 1 and str(file) in said


@pytest.mark.parametrize(
    "error",
    [
        KeyError("sources"),
        TypeError("'int' object is not iterable"),
        AttributeError("x"),
        IndexError(),
    ],
)
def test_a_fault_that_nobody_foresaw_is_one_line_that_says_so(error, capsys):
    code, said = ended(raising(error), capsys)
    assert code == 1 and said.count("\n") == 1
    assert type(error).__name__ in said and "--debug" in said and "fault of the program" in said


def test_templates_recursion_and_groups(capsys):
    template = Environment().from_string("{{ a.b.c }}")
    assert "UndefinedError" in ended(template.render, capsys)[1]
    assert "nested too deeply" in ended(lambda: deep(0), capsys)[1]


class Together(Exception):
    """What groups of tasks raise (ExceptionGroup of later Pythons)."""

    exceptions = (ValueError("the first one"), ValueError("the second"))


def test_of_several_errors_the_first_is_told():
    assert in_one_line(Together()) == "the first one"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: can't allocate memory"
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    ],
)
def test_memory_that_is_not_there(error, capsys):
    code, said = ended(raising(error), capsys)
    assert code == 1 and "Out of memory" in said and "--batch_size" in said


@pytest.mark.parametrize(
    "number", ["ENOSPC", "EACCES", "EROFS", "EMFILE", "EISDIR", "ENAMETOOLONG"]
)
def test_what_the_system_refuses_names_the_path(number, capsys):
    number = getattr(errno, number)
    code, said = ended(raising(OSError(number, os.strerror(number), "/some/file")), capsys)
    assert code == 1 and "'/some/file'" in said and "Errno" not in said


def test_an_extra_that_is_missing_is_named(capsys):
    error = ModuleNotFoundError("No module named 'anthropic'", name="anthropic")
    assert "pip install 'sparsify-crosscoder[anthropic]'" in ended(raising(error), capsys)[1]


def test_a_traceback_is_shown_with_debug_alone(capsys, monkeypatch):
    assert "Traceback" not in ended(raising(KeyError(1)), capsys)[1]
    assert "Traceback" in ended(raising(KeyError(1)), capsys, debug=True)[1]

    def fails(args):
        raise KeyError("a")

    def said(*argv):
        parser = ArgumentParser(prog="p")
        parser.add_argument("words", nargs="*")
        parser.add_argument("--json")
        with pytest.raises(SystemExit) as stop:
            execute(parser, fails, argv)
        assert stop.value.code == 1
        return capsys.readouterr().err

    assert "Traceback" not in said("a")
    assert "Traceback" in said("--debug", "a") and "Traceback" in said("a", "--debug")
    monkeypatch.setenv("SPARSIFY_CROSSCODER_DEBUG", "1")
    assert "Traceback" in said("a")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_debug_and_says_wrong_use_in_one_line(command, capsys):
    for argv in (
        [command, "--debug", "--no_such_option"],
        ["--debug", command, "--no_such_option"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        said = capsys.readouterr().err
        assert stop.value.code == 2 and said.count("\n") == 1 and ": error: " in said
    with pytest.raises(SystemExit) as stop:
        main([command, "--arch", "dfc", "--help"] if command == "train" else [command, "--help"])
    assert stop.value.code == 0 and "--debug" in capsys.readouterr().out


def test_a_reader_that_leaves_early_is_no_error():
    code = (
        "from sparsify_crosscoder.endings import ending\n"
        "with ending('prog'):\n"
        "    for number in range(100_000): print(number)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_full_disk_under_our_own_writing_names_the_path(capsys):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")

    def work():
        with open("/dev/full", "w", encoding="utf-8") as file:
            file.write("x")

    code, said = ended(work, capsys)
    assert code == 1 and "No space left" in said and "make room" in said
