"""Lets the installed `sparsify` command train crosscoders; imported at every start of Python.

A finder at the front of `sys.meta_path` serves the one name `sparsify.__main__`, and only where the
command line asks for it with `--arch` or `--help`. `SPARSIFY_CROSSCODER_AUTOLOAD=0` turns it off.
Nothing may be imported here but `os` and `sys`.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType

_COMMAND = "sparsify_crosscoder.commands.train"
# What runpy executes for `python -m sparsify` and `torchrun -m sparsify`.
_MAIN = f"""\
from {_COMMAND} import main

if __name__ == "__main__":
    import sys

    sys.exit(main())
"""


def _asked_for() -> bool:
    return any(
        arg in ("--arch", "-h", "--help") or arg.startswith("--arch=") for arg in sys.argv[1:]
    )


def _is_sparsify() -> bool:
    """Whether the program is sparsify's own command, `python -m sparsify` included."""
    program = os.path.basename(sys.argv[0]).lower()
    return program in ("sparsify", "sparsify.exe", "sparsify-script.py") or (
        program == "-m" and "sparsify" in sys.orig_argv
    )


class SparsifyMainFinder:
    """Finds `sparsify.__main__` with `run` replaced, where the command line asks for it.

    The module of sparsify that prints as it is imported is then silent, OpenMP's threads share
    their cores, and an architecture that nobody offers is refused before anything is imported.
    """

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> "ModuleSpec | None":
        if fullname == "sparsify" and _is_sparsify() and _asked_for():
            from .hardware import share_cores
            from .registry import refuse_unknown_architecture

            refuse_unknown_architecture(sys.argv[1:])
            share_cores()  # sparsify imports torch
        if fullname == "sparsify.utils" and _is_sparsify() and _asked_for():
            from .surroundings import SilentImport

            return SilentImport(fullname).find_spec(fullname, path)
        if fullname != "sparsify.__main__" or not _asked_for():
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(fullname, path)  # pyright: ignore[reportArgumentType]
        if spec is not None and spec.loader is not None:
            spec.loader = _SparsifyMainLoader(spec.loader)  # pyright: ignore[reportAttributeAccessIssue]
        return spec


class _SparsifyMainLoader:
    """Wraps the loader of sparsify's own `__main__`."""

    def __init__(self, original: "Loader") -> None:
        self._original = original

    def create_module(self, spec: "ModuleSpec") -> None:
        return None

    def exec_module(self, module: "ModuleType") -> None:
        """Run sparsify's own module, then replace `run`: the console script's way in."""
        self._original.exec_module(module)

        # Late, because the command imports sparsify.__main__ itself and may be the one that is
        # importing it now.
        def run() -> object:
            from importlib import import_module

            return import_module(_COMMAND).main()

        module.run = run  # pyright: ignore[reportAttributeAccessIssue]

    def get_code(self, fullname: str) -> "CodeType":
        """Give runpy a module that calls our `run`."""
        return compile(_MAIN, "<sparsify_crosscoder autoload>", "exec")


def install() -> None:
    """Put the finder in place, once."""
    if not any(type(finder).__name__ == SparsifyMainFinder.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, SparsifyMainFinder())  # pyright: ignore[reportArgumentType]


if os.environ.get("SPARSIFY_CROSSCODER_AUTOLOAD") != "0":
    install()
