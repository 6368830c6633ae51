import configparser
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import sparsify_crosscoder

ROOT = Path(__file__).parent.parent


def python(*args: str, executable: str | Path = sys.executable) -> str:
    done = subprocess.run(
        [str(executable), *args], capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = ["-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    python(*pip, "--wheel-dir", str(folder), str(ROOT))
    (path,) = folder.iterdir()
    return path


def test_starting_python_imports_nothing_but_the_package_and_its_autoload():
    # -S: without site no .pth is run, so that this sees the imports happen.
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules);"
        "import sparsify_crosscoder._autoload; print(*sorted(set(sys.modules) - before))"
    )
    loaded = python("-S", "-c", code, str(ROOT))
    assert loaded == "sparsify_crosscoder sparsify_crosscoder._autoload"


def test_importing_the_package_loads_neither_torch_nor_sparsify_nor_numpy():
    code = (
        "import sys, sparsify_crosscoder as sc; dir(sc); sc.__version__, sc.Architecture;"
        "print({'torch', 'sparsify', 'numpy', 'transformers', 'datasets'} & sys.modules.keys())"
    )
    assert python("-c", code) == "set()"


@pytest.mark.parametrize("name", sparsify_crosscoder.__all__)
def test_public_name_resolves(name):
    value = getattr(sparsify_crosscoder, name)
    assert getattr(value, "__name__", name) == name
    assert name in dir(sparsify_crosscoder)


def test_star_import_gives_all_public_names():
    namespace: dict[str, object] = {}
    exec("from sparsify_crosscoder import *", namespace)
    assert set(sparsify_crosscoder.__all__) <= namespace.keys()


def test_version_is_the_installed_distributions():
    assert sparsify_crosscoder.__version__ == version("sparsify-crosscoder")


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'sparsify_crosscoder' has no attribute 'Crosscodr'"):
        _ = sparsify_crosscoder.Crosscodr  # pyright: ignore[reportAttributeAccessIssue]


def test_wheel_holds_both_packages_their_type_markers_and_one_pth(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        pth = archive.read("sparsify_crosscoder_autoload.pth").decode()
    assert pth.strip() == "import sparsify_crosscoder._autoload"
    assert {name for name in names if name.endswith(".pth")} == {"sparsify_crosscoder_autoload.pth"}
    assert {
        f"{package}/{file}"
        for package in ("sparsify_crosscoder", "delphi_adapters")
        for file in ("__init__.py", "py.typed")
    } <= names
    for package in ("sparsify_crosscoder", "delphi_adapters"):
        ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*.py")}
        assert ours == {n for n in names if n.startswith(f"{package}/") and n.endswith(".py")}
    assert not any(name.startswith(("tests/", "examples/")) for name in names)


def test_wheel_holds_every_rubric(wheel):
    folder = "delphi_adapters/judging/rubric_files"
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if name.startswith(folder)}
    here = {f"{folder}/{path.name}" for path in (ROOT / folder).iterdir()}
    assert shipped == here and len(here) >= 5


def test_wheel_declares_the_command_and_the_architectures(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (entry_points,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        declared = configparser.ConfigParser()
        declared.read_string(archive.read(entry_points).decode())
    assert dict(declared["console_scripts"]) == {
        "sparsify-crosscoder": "sparsify_crosscoder.__main__:main"
    }
    assert dict(declared["sparsify.trainers"]) == {
        "crosscoder": "sparsify_crosscoder.crosscoders.standard:STANDARD",
        "dfc": "sparsify_crosscoder.crosscoders.dfc:DFC",
        "dsf": "sparsify_crosscoder.crosscoders.dsf:DSF",
        "rdfc": "sparsify_crosscoder.crosscoders.rdfc:RDFC",
    }


def test_a_fresh_environment_with_the_wheel_has_the_finder_at_start(wheel, tmp_path):
    venv.create(tmp_path, with_pip=False)
    executable = next(p for p in tmp_path.glob("*/python*") if p.stem == "python")
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    purelib = python("-c", ask, executable=executable)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(purelib)
    code = "import sys; print(type(sys.meta_path[0]).__name__)"
    assert python("-I", "-c", code, executable=executable) == "SparsifyMainFinder"


def test_every_public_name_of_the_clients_can_be_used():
    from delphi_adapters import clients

    assert {"AnthropicClient", "Ledger", "TransformersClient"} <= set(clients.__all__)
    assert set(clients.__all__) <= set(dir(clients))
    for name in clients.__all__:
        assert getattr(clients, name).__name__ == name
