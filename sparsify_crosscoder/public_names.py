"""The public names of a package, read from its stub."""

import ast
import pkgutil


def modules_of(package: str) -> dict[str, str]:
    """The module, relative to the package, of every name that `__init__.pyi` imports."""
    stub = pkgutil.get_data(package, "__init__.pyi")
    assert stub is not None
    relative = [one for one in ast.parse(stub).body if isinstance(one, ast.ImportFrom)]
    return {name.name: str(one.module) for one in relative for name in one.names}
