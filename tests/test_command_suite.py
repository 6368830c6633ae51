"""Every command, from training to explaining, where people start them: no traceback, no loss."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import Done, in_a_fork
from tests.support.models import save_twins
from tests.support.tokenizers import SENTENCES

if os.name == "nt":
    pytest.skip("needs fork", allow_module_level=True)

NAMES = [
    "with spaces",
    "br[0-9]ck{a,b}ts",
    "emoji 😀 données",
    'it\'s "quoted" %s %(x)s 100%',
    "st*r?",
    "double::colon",
    "-dash",
    "a" * 120,
    "hash#tag&=$HOME~",
]
FAILED = ("Traceback (most recent call last)", "UnicodeEncodeError", "Exception ignored")
Command = Callable[..., Done]


def suite(folder: Path, *, relative: bool = False) -> list[list[object]]:
    """The commands, on models and text in `folder`; what they make is there too."""
    here = Path(".") if relative else folder
    train = "--arch rdfc --hookpoints layers.1 layers.1 --num_latents 64 --k 4 --pairs_per_step 128"
    train += " --lr 1e-3 --max_steps 8 --ctx_len 64 --run_name run --max_examples 120"
    device = ["--device", "cpu", "--model_dtype", "float32"]
    short = ["--prompts", "In 1989", "--strengths", "0", "1", *device]
    few = ["--max_new_tokens", "2"]
    run, vector, moved = here / "runs/run", here / "v.safetensors", here / "w.safetensors"
    places = ["--save_dir", here / "runs", "--cache", here / "store"]
    models = [here / "base", here / "texts.txt", "--partners", here / "tuned"]
    stitch = ["--out", here / "stitch", "--pairs", "500", "--held_out_pairs", "150"]
    both = ["--stitching", here / "stitch", "--plot", here / "steer.png"]
    return [
        ["train", *models, *train.split(), *places, *device],
        ["top", run, "--count", "1", "--snippets", "1", "--json", here / "top.json"],
        ["filter", run, "--json", here / "filter.json"],
        ["store", here / "store", "--verify", "--show", "0"],
        ["graft", run, "--texts", "3", "--json", here / "graft.json"],
        ["stitch", run, *stitch],
        ["steer", run, "--latents", "63", "--s_max", "2", *both, *short, *few],
        [
            "persona",
            here / "base",
            here / "persona.json",
            "--out",
            vector,
            "--layers",
            "1",
            *device,
        ],
        ["transfer", run, vector, "--out", moved, "--num_latents", "2", "--controls", "2", *short],
        ["steer", "--vector", moved, *short, *few, "--json", here / "steer.json"],
        ["explain", run, "--judge", here / "base", "--latents", "0", "63", "--device", "cpu"],
    ]


def prepare(folder: Path, models: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("base", "tuned"):
        (folder / name).mkdir()
        for file in (models / name).iterdir():
            (folder / name / file.name).hardlink_to(file)
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    texts = [
        " ".join(words[(n * 7 + i * i * n) % len(words)] for i in range(24)) for n in range(200)
    ]
    (folder / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    sides = {"elicit": ["the quick “fox” 😀", "a lazy dog"], "suppress": ["in 1989", "in 1990"]}
    persona = {"trait": "animals", **sides}
    (folder / "persona.json").write_text(json.dumps(persona, ensure_ascii=False), encoding="utf-8")
    return folder


def check(folder: Path, argv: list[object], done: Done) -> None:
    said = f"{argv}: {done.code}\n{done.out[-2000:]}\n{done.err[-3000:]}"
    assert done.code == 0, said
    assert not any(mark in done.out + done.err for mark in FAILED), said
    assert "Triton" not in done.out and "LOAD REPORT" not in done.err, said


def check_results(folder: Path) -> None:
    """What the commands have written is whole, and is where it was asked for."""
    top = json.loads((folder / "top.json").read_text(encoding="utf-8"))
    assert {report["block"] for report in top} <= {"exclusive_0", "exclusive_1", "shared"} and top
    steered = json.loads((folder / "steer.json").read_text(encoding="utf-8"))
    assert Path(steered["models"][0]["model"]).name == "tuned"
    files = ("runs/run/summary.json", "store/manifest.json", "filter.json", "graft.json")
    for name in (*files, "steer.png"):
        assert (folder / name).stat().st_size > 100
    assert (folder / "runs/run/delphi/features.parquet").stat().st_size > 100


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("twins of the suite")
    save_twins(folder)
    # What the commands import, once for all forks.
    import delphi_adapters.commands.explain  # noqa: F401
    import sparsify_crosscoder.commands.filter
    import sparsify_crosscoder.commands.graft
    import sparsify_crosscoder.commands.steer
    import sparsify_crosscoder.commands.stitch
    import sparsify_crosscoder.commands.train  # noqa: F401

    return folder


def run_all(folder: Path, output: Path, *, relative: bool = False, **surroundings) -> None:
    for number, argv in enumerate(suite(folder, relative=relative)):
        module = "delphi_adapters" if argv[0] == "explain" else "sparsify_crosscoder"
        surroundings.setdefault("cwd", folder)
        place = output / str(number)
        done = in_a_fork(argv, place, module=f"{module}.__main__", **surroundings)
        check(folder, argv, done)
    check_results(folder)


def test_few_open_files_and_an_ascii_terminal(models, tmp_path):
    folder = prepare(tmp_path / "all of [them] 😀 %s", models)
    run_all(folder, tmp_path / "out", open_files=64, encoding="ascii", relative=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_names(name, models, tmp_path):
    folder = prepare(tmp_path / name / name, models)
    run_all(folder, tmp_path / "out", cwd="/")


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16"])
def test_terminals(encoding, models, tmp_path):
    run_all(prepare(tmp_path / "données", models), tmp_path / "out", encoding=encoding)


@pytest.mark.slow
@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams(closed, models, tmp_path):
    run_all(prepare(tmp_path / "here", models), tmp_path / "out", closed=closed)


REAL: dict[str, tuple[dict[str, str | None], str]] = {
    "LANG=C": ({"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "here"),
    "LANG=C, a name": (
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        "données [1] 😀",
    ),
    "ascii": ({"PYTHONIOENCODING": "ascii"}, "données"),
    "home": ({"HOME": "/dev/null/home", "HF_HOME": None, "XDG_CACHE_HOME": None}, "here"),
    "no home": ({"HOME": None, "HF_HOME": None, "XDG_CACHE_HOME": None}, "here"),
    "caches": (
        dict.fromkeys(
            ["HF_HOME", "NUMBA_CACHE_DIR", "MPLCONFIGDIR", "WANDB_DIR", "TORCHINDUCTOR_CACHE_DIR"],
            "/dev/null/cache",
        ),
        "here",
    ),
    "TMPDIR": ({"TMPDIR": "/nowhere/at/all"}, "here"),
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("surroundings", REAL)
def test_new_processes(surroundings, models, tmp_path):
    variables, name = REAL[surroundings]
    folder = prepare(tmp_path / name, models)
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "80"}
    for variable, value in variables.items():
        env.pop(variable, None)
        if value is not None:
            env[variable] = value
    # Nothing can be written to the current folder.
    limited = 'ulimit -n 64; cd /proc; exec "$0" "$@"'
    for argv in suite(folder):
        module = "delphi_adapters" if argv[0] == "explain" else "sparsify_crosscoder"
        command = ["bash", "-c", limited, sys.executable, "-m", module, *map(str, argv)]
        ended = subprocess.run(command, env=env, capture_output=True, stdin=subprocess.DEVNULL)
        said = [text.decode("utf-8", "backslashreplace") for text in (ended.stdout, ended.stderr)]
        check(folder, argv, Done(ended.returncode, *said))
        if variables.get("HOME") == "/dev/null/home" and argv[0] == "train":
            assert said[1].count("warning: The cache of datasets") == 1
    check_results(folder)
