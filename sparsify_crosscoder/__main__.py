"""`sparsify-crosscoder SUBCOMMAND`, the same as `python -m sparsify_crosscoder SUBCOMMAND`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "train": ("cli", "run", "train a crosscoder: the same as `sparsify ... --arch NAME`"),
    "harvest": ("cli", "harvest", "fill an activation store and report on the alignment"),
    "top": ("evaluation.top", "main", "show where the latents of a run fire most"),
    "filter": ("evaluation.filter_command", "main", "drop exclusive latents that all models have"),
    "stability": ("evaluation.stability_command", "main", "differences that several runs find"),
    "toy": ("evaluation.toy.command", "main", "compare architectures on known concepts"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a subcommand; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: sparsify-crosscoder SUBCOMMAND ...\n")
        for name, (_, _, description) in COMMANDS.items():
            print(f"  {name:<10} {description}")
        print("\nsparsify-crosscoder SUBCOMMAND --help lists the options of one.")
        raise SystemExit(0 if argv else 2)
    if argv[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(
            f"sparsify-crosscoder: error: unknown subcommand '{argv[0]}'; there are {known}.",
            file=sys.stderr,
        )
        raise SystemExit(2)
    module, function, _ = COMMANDS[argv[0]]
    getattr(import_module(f"sparsify_crosscoder.{module}"), function)(argv[1:])


if __name__ == "__main__":
    main()
