"""Crosscoders over language models of different width, depth and tokenizer.

Public names are those of `__init__.pyi`, loaded on first use: the `.pth` file of this package
imports it at every start of Python, so it must stay free of imports, those of the standard library
included.
"""


def _modules() -> dict[str, str]:
    """The module of every public name."""
    from .public_names import modules_of

    return modules_of(__name__)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("sparsify-crosscoder")
    elif name == "__all__":
        value = sorted({*_modules(), "__version__"})
    elif name.startswith("__") or name not in (modules := _modules()):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    else:
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{modules[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_modules(), "__version__"})
