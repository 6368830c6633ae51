"""What examples share: running a command and showing what a user would type for it."""

from __future__ import annotations

import shlex

from sparsify_crosscoder.__main__ import main


def call(*arguments: object) -> None:
    """Print and run `sparsify-crosscoder` with these arguments."""
    argv = [str(argument) for argument in arguments]
    print(f"\n$ sparsify-crosscoder {shlex.join(argv)}", flush=True)
    main(argv)
