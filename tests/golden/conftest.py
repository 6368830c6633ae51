"""Recorded behaviour: `pytest tests/golden --record` writes it anew."""

import sys
from pathlib import Path

import pytest
from golden.compare import Golden

# The judge's server; this folder has the name of the real package.
sys.path.append(str(Path(__file__).parents[1] / "delphi_adapters"))


def pytest_addoption(parser):
    parser.addoption("--record", action="store_true", help="write the golden files anew")


@pytest.fixture(scope="session")
def golden(pytestconfig) -> Golden:
    """Compares with the golden files, or writes them."""
    return Golden(bool(pytestconfig.getoption("--record", default=False)))
