"""Recorded behaviour: `pytest tests/golden --record` writes it anew."""

import pytest

from tests.golden.compare import Golden


def pytest_addoption(parser):
    parser.addoption("--record", action="store_true", help="write the golden files anew")


@pytest.fixture(scope="session")
def golden(pytestconfig) -> Golden:
    """Compares with the golden files, or writes them."""
    return Golden(bool(pytestconfig.getoption("--record", default=False)))
