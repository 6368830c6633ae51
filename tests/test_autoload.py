import importlib.util
import os
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

from sparsify_crosscoder._autoload import SparsifyMainFinder
from tests.support.fresh import run_fresh

SPARSIFY = importlib.util.find_spec("sparsify")
assert SPARSIFY is not None and SPARSIFY.submodule_search_locations
SPARSIFY_PATH = list(SPARSIFY.submodule_search_locations)
SPARSIFY_MAIN = str(Path(SPARSIFY_PATH[0]) / "__main__.py")
BIN = Path(sys.executable).parent

MINE = "sum(type(f).__name__ == 'SparsifyMainFinder' for f in sys.meta_path)"


def run(*command: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        env={**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def python(code: str, *argv: str, **env: str) -> str:
    done = run(sys.executable, "-c", code, *argv, **env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def find(name: str, *argv: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["sparsify", *argv])
    return SparsifyMainFinder().find_spec(name, SPARSIFY_PATH)


def test_python_starts_with_one_finder_in_front():
    code = f"import sys; print(type(sys.meta_path[0]).__name__, {MINE})"
    assert python(code) == "SparsifyMainFinder 1"


def test_the_environment_variable_turns_the_finder_off():
    assert python(f"import sys; print({MINE})", SPARSIFY_CROSSCODER_AUTOLOAD="0") == "0"


def test_importing_the_autoload_again_adds_no_second_finder():
    code = (
        "import sys; del sys.modules['sparsify_crosscoder._autoload'];"
        f"import sparsify_crosscoder._autoload; print({MINE})"
    )
    assert python(code) == "1"


@pytest.mark.parametrize("argv", [["--arch", "dfc"], ["--arch=dfc"], ["-h"], ["m", "--help"]])
def test_the_finder_serves_sparsify_main_when_the_command_line_asks(argv, monkeypatch):
    spec = find("sparsify.__main__", *argv, monkeypatch=monkeypatch)
    assert spec is not None
    assert spec.origin == SPARSIFY_MAIN
    assert not isinstance(spec.loader, SourceFileLoader)


@pytest.mark.parametrize(
    "argv", [[], ["model", "dataset"], ["--architecture", "x"], ["--arc=dfc"], ["arch"], ["--k=3"]]
)
def test_the_finder_is_silent_on_every_other_command_line(argv, monkeypatch):
    assert find("sparsify.__main__", *argv, monkeypatch=monkeypatch) is None


@pytest.mark.parametrize("name", ["sparsify", "sparsify.trainer", "__main__", "json", "torch"])
def test_the_finder_is_silent_on_every_other_module(name, monkeypatch):
    assert find(name, "--arch", "dfc", monkeypatch=monkeypatch) is None


@pytest.mark.parametrize("argv", [["--arch", "dcf"], ["model", "--arch=dcf"]])
def test_an_unknown_architecture_is_refused_before_sparsify_is_found(argv, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        find("sparsify", *argv, monkeypatch=monkeypatch)
    assert stopped.value.code == 2
    assert "unknown architecture 'dcf'. Did you mean" in capsys.readouterr().err


def test_a_missing_sparsify_stays_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["sparsify", "--arch", "dfc"])
    assert SparsifyMainFinder().find_spec("sparsify.__main__", [str(tmp_path)]) is None


def test_without_arch_the_command_imports_sparsifys_own_run(tmp_path):
    code = (
        "import sys; from sparsify.__main__ import run; main = sys.modules['sparsify.__main__'];"
        "print(run.__code__.co_filename, main.__file__, type(main.__loader__).__name__,"
        "any('sparsify_crosscoder' in m and m.count('.') and not m.endswith('_autoload')"
        " for m in sys.modules))"
    )
    expected = f"{SPARSIFY_MAIN} {SPARSIFY_MAIN} SourceFileLoader False"
    assert run_fresh(code, tmp_path, "model", "dataset").out.strip() == expected


def test_with_arch_the_rest_of_sparsify_main_stays_and_run_is_ours(tmp_path):
    code = (
        "from sparsify.__main__ import RunConfig, load_artifacts, run;"
        "from sparsify_crosscoder.commands.train import SparsifyRunConfig;"
        "print(SparsifyRunConfig is RunConfig, load_artifacts.__code__.co_filename,"
        "run.__module__)"
    )
    expected = f"True {SPARSIFY_MAIN} sparsify_crosscoder._autoload"
    assert run_fresh(code, tmp_path, "--arch", "dfc").out.strip() == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [[BIN / "sparsify"], [sys.executable, "-m", "sparsify"]],
    ids=["console script", "python -m"],
)
def test_without_arch_the_command_says_the_same_with_and_without_us(command):
    argv = [*command, "model", "dataset", "--partners", "other"]
    ours, alone = run(*argv), run(*argv, SPARSIFY_CROSSCODER_AUTOLOAD="0")
    assert "unrecognized arguments: --partners other" in alone.stderr
    assert (ours.returncode, ours.stdout, ours.stderr) == (
        alone.returncode,
        alone.stdout,
        alone.stderr,
    )


WAYS = {
    "console script": [BIN / "sparsify"],
    "python -m": [sys.executable, "-m", "sparsify"],
    "torchrun": [BIN / "torchrun", "--nproc_per_node=1", "-m", "sparsify"],
    "our own": [BIN / "sparsify-crosscoder", "train"],
    "our own -m": [sys.executable, "-m", "sparsify_crosscoder", "train"],
}


@pytest.mark.parametrize("way", WAYS)
def test_with_arch_every_way_of_calling_reaches_us(way):
    done = run(*WAYS[way], "model", "dataset", "--arch", "dcf")
    assert done.returncode == (1 if way == "torchrun" else 2)
    assert "unknown architecture 'dcf'" in done.stderr
    assert "Known architectures: crosscoder, dfc, dsf, rdfc" in done.stderr


@pytest.mark.parametrize(
    "way", ["console script", pytest.param("python -m", marks=pytest.mark.slow)]
)
def test_help_shows_sparsifys_options_and_our_architectures(way):
    done = run(*WAYS[way], "--help")
    assert done.returncode == 0
    assert "--expansion_factor" in done.stdout
    for name in ("crosscoder", "dfc", "dsf"):
        assert f"--arch {name}" in done.stdout
