"""Code in a process of its own, which need not wait for torch and transformers."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from textwrap import dedent

from tests.support.commands import Done

# An interpreter like any other, which has imported sparsify and forks for each request.
_FORKING = """
import json, os, sys, traceback
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # sparsify prints as it is imported
import sparsify
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        for descriptor, file in enumerate((os.devnull, *asked["said"])):
            os.dup2(os.open(file, os.O_CREAT | os.O_RDWR), descriptor)
        sys.argv = ["-c", *asked["argv"]]
        os.environ.clear()
        os.environ.update(asked["env"])
        code = 0
        try:
            exec(asked["code"], {"__name__": "__main__"})
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
"""


def run_fresh(code: str, output: Path, *argv: str, env: Mapping[str, str] | None = None) -> Done:
    """Run code as `python -c CODE ARGV` does, where what sparsify imports is imported already.

    `output` is a folder for what it prints.
    """
    output.mkdir(parents=True, exist_ok=True)
    files = [output / "out", output / "err"]
    for file in files:
        file.unlink(missing_ok=True)
    asked = {
        "code": dedent(code),
        "argv": argv,
        "env": {**os.environ, **(env or {})},
        "said": [str(file) for file in files],
    }
    process = _forking()
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps(asked) + "\n")
    process.stdin.flush()
    ended = process.stdout.readline()
    return Done(int(ended), *(file.read_text(encoding="utf-8") for file in files))


@cache
def _forking() -> subprocess.Popen[str]:
    """The interpreter, which ends when its input does."""
    command = [sys.executable, "-c", _FORKING]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, text=True, encoding="utf-8", **pipes)
