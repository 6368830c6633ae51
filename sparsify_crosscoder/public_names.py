"""The public names of a package, read from its stub."""

import ast
import pkgutil
from importlib import import_module


def modules_of(package: str) -> dict[str, str]:
    """The module, relative to the package, of every name that `__init__.pyi` imports."""
    stub = pkgutil.get_data(package, "__init__.pyi")
    assert stub is not None
    relative = [one for one in ast.parse(stub).body if isinstance(one, ast.ImportFrom)]
    return {name.name: str(one.module) for one in relative for name in one.names}


def public_value(package: str, name: str) -> object:
    """What a public name of the package is, its module loaded.

    Raises AttributeError for a name that is none.
    """
    # Python itself asks for names such as __path__, before the stub need be read.
    modules = {} if name.startswith("__") else modules_of(package)
    if name not in modules:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return getattr(import_module(f"{package}.{modules[name]}"), name)
