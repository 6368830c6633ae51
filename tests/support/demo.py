"""Running the demo."""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@dataclass(frozen=True)
class DemoRun:
    """How a run of the demo ended, what it said and how much memory it took."""

    returncode: int
    stdout: str
    stderr: str

    peak_bytes: int
    """Of the process, or of its largest child if that took more."""


def run_demo(folder: Path, *options: str) -> DemoRun:
    """Run the demo of two architectures into a folder."""
    return run_whole_demo(folder, "--pair_only", *options)


def run_whole_demo(folder: Path, *options: str) -> DemoRun:
    """Run what the options say of the demo."""
    command = [sys.executable, str(DEMO), "--folder", str(folder), *options]
    # The quick tests run on one thread each; the demo has all cores to itself.
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=env)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said = [file.seek(0) or file.read().decode("utf-8") for file in (out, err)]
    return DemoRun(process.returncode, *said, used.ru_maxrss * 1024)
