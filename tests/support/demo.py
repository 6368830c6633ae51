"""Running the demo, once for all that look at what it leaves."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

EXAMPLES = Path(__file__).parents[2] / "examples"


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
    return _run("demo.py", "--folder", str(folder), *options)


def convert_models(folder: Path) -> DemoRun:
    """Convert the demo's two models into a folder."""
    return _run("demo_models.py", str(folder))


def lend_models(models: Path, folder: Path) -> None:
    """Let a demo in a folder that is new find its models converted."""
    (folder / "demo-data").mkdir(parents=True)
    (folder / "demo-data" / "models").symlink_to(models)


def once(place: Path, run: Callable[[Path], DemoRun]) -> tuple[Path, DemoRun]:
    """Run something into a folder at `place`, unless a process beside this one has or does so.

    Returns the folder, and how it ran.
    """
    place.mkdir(exist_ok=True)
    told = place / "told.json"
    with FileLock(place / "lock"):
        if not told.exists():
            done = run(place / "folder")
            assert done.returncode == 0, done.stderr[-4000:]
            told.write_text(json.dumps(asdict(done)), encoding="utf-8")
    return place / "folder", DemoRun(**json.loads(told.read_text(encoding="utf-8")))


def _run(script: str, *arguments: str) -> DemoRun:
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    # The quick tests run on one thread each; the demo has all cores to itself.
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=env)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said = [file.seek(0) or file.read().decode("utf-8") for file in (out, err)]
    return DemoRun(process.returncode, *said, used.ru_maxrss * 1024)
