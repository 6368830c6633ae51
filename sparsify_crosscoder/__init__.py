"""Crosscoders over language models of different width, depth and tokenizer.

Public names are those of `__init__.pyi`, loaded on first use: the `.pth` file of this package
imports it at every start of Python, so it must stay free of imports, those of the standard library
included.
"""


def __getattr__(name: str) -> object:
    from .public_names import modules_of, public_value

    if name == "__version__":
        from importlib.metadata import version

        value: object = version("sparsify-crosscoder")
    elif name == "__all__":
        value = sorted([*modules_of(__name__), "__version__"])
    else:
        value = public_value(__name__, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    from .public_names import modules_of

    return sorted({*globals(), *modules_of(__name__), "__version__"})
