"""What tests of the examples share: a finished demo."""

from pathlib import Path

import pytest
from demo_for_tests import run_demo


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> tuple[Path, str]:
    """The folder of a finished demo, and what it printed."""
    folder = tmp_path_factory.mktemp("runs")
    done = run_demo(folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, done.stdout
