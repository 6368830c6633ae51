"""Recorded behaviour: `pytest tests/golden --record` writes it anew."""

from pathlib import Path

import pytest

from tests.golden.compare import Golden
from tests.golden.tiny import TRAINING, models, ours, prepare


def pytest_addoption(parser):
    parser.addoption("--record", action="store_true", help="write the golden files anew")


@pytest.fixture(scope="session")
def golden(pytestconfig) -> Golden:
    """Compares with the golden files, or writes them."""
    return Golden(bool(pytestconfig.getoption("--record", default=False)))


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """A folder with two models, a text, a store, and two runs from it."""
    folder = tmp_path_factory.mktemp("golden")
    prepare(folder)
    training = [*models(folder), *TRAINING.split(), "--cache", folder / "store"]
    ours("harvest", *training, "--json", folder / "harvest.json")
    for name, seed in (("run", 0), ("second", 1)):
        places = ["--save_dir", folder, "--run_name", name, "--init_seeds", seed]
        said = ours("train", *training, *places, "--json", folder / f"{name}.json")
        (folder / f"{name}.out").write_text(said, encoding="utf-8")
    return folder
