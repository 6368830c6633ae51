"""Commands run in a fork of the test's own process, in surroundings of their own."""

import os
import resource
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


def in_a_fork(
    argv: Sequence[object],
    output: Path,
    *,
    module: str = "sparsify_crosscoder.__main__",
    env: dict[str, str | None] | None = None,
    cwd: str | Path | None = None,
    encoding: str = "utf-8",
    open_files: int | None = None,
    closed: Sequence[int] = (),
    seconds: int = 200,
) -> Done:
    """Run `main()` of a module in a fork, which has everything imported already.

    `output` is a folder for what it prints, in `encoding`. A variable of `env` that is None is
    unset; `open_files` limits how many there may be at a time; descriptors in `closed` are closed.
    """
    output.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush(), sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            signal.alarm(seconds)
            for descriptor, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(output / name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), descriptor)
            sys.stdin = os.fdopen(os.dup(os.open(os.devnull, os.O_RDONLY)), encoding="utf-8")
            sys.stdout, sys.stderr = (
                os.fdopen(d, "w", encoding=encoding, errors=how)
                for d, how in ((1, "strict"), (2, "backslashreplace"))
            )
            for descriptor in closed:
                os.close(descriptor)
                setattr(sys, ("stdin", "stdout", "stderr")[descriptor], None)
            for name, value in (env or {}).items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})
            os.chdir(cwd or output)
            if open_files:
                # Those of the parent count too.
                os.closerange(3, 4096)
                resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
            sys.argv = ["sparsify-crosscoder", *map(str, argv)]
            __import__(module)
            sys.modules[module].main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    said = [(output / name).read_text(encoding, "replace") for name in ("out", "err")]
    return Done(os.waitstatus_to_exitcode(status), *said)
