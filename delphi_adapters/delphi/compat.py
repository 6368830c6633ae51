"""delphi without the packages that only a few of its parts need, and on transformers 5.

Importing this module imports delphi. delphi 0.1 imports vLLM, faiss and sentence-transformers
whether or not they are used; where one is missing, names from it are placeholders that say what to
install when they are called. Nothing of it stays in `sys.modules`, so other code still finds the
package missing. delphi can be imported before nnsight and after it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

UNNEEDED = {
    "vllm": "vllm",
    "faiss": "faiss-cpu",
    "sentence_transformers": "sentence-transformers",
}
"""Packages that delphi imports at once, and how to install them."""

_PARTS = (
    "delphi.config",
    "delphi.latents",
    "delphi.clients",
    "delphi.explainers",
    "delphi.scorers",
    "delphi.pipeline",
)


class _Placeholders(MetaPathFinder, Loader):
    """Serves modules of missing packages; every name in one is a class that cannot be called."""

    def __init__(self, packages: dict[str, str]):
        self.packages = packages

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] in self.packages:
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _PlaceholderModule(spec.name, self.packages[spec.name.partition(".")[0]])

    def exec_module(self, module: ModuleType) -> None:
        pass


class _PlaceholderModule(ModuleType):
    def __init__(self, name: str, distribution: str):
        super().__init__(name)
        self._distribution = distribution

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(cls: type, *_: Any, **__: Any) -> Any:
            raise ImportError(
                f"{self.__name__}.{name} is not available: `pip install {self._distribution}`."
            )

        return type(name, (), {"__new__": refuse})


@contextmanager
def _without_unneeded() -> Iterator[None]:
    missing = {
        package: name
        for package, name in UNNEEDED.items()
        if package not in sys.modules and find_spec(package) is None
    }
    finder = _Placeholders(missing)
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n in sys.modules if n.partition(".")[0] in missing]:
            del sys.modules[name]


@contextmanager
def without_mounted_save() -> Iterator[None]:
    """Import something that fails at the `save` which nnsight puts on `object`.

    beartype, which delphi imports, hashes all that `object` has, and anyio, by which anthropic
    connects, wants a type for every attribute of some of its classes.
    """
    if "nnsight" not in sys.modules or not hasattr(object, "save"):
        yield
        return
    from nnsight import save
    from nnsight._c import mount, unmount

    unmount("save")  # type: ignore[misc]
    try:
        yield
    finally:
        mount(save, "save")  # type: ignore[misc]


def _import_delphi() -> None:
    if find_spec("delphi") is None:
        raise ImportError(
            "delphi_adapters needs EleutherAI's delphi: `pip install 'sparsify-crosscoder[delphi]'`"
            " with a GPU, or without one `pip install 'sparsify-crosscoder[delphi-lite]'` and then "
            "`pip install --no-deps 'eai-delphi==0.1.*'`."
        )
    with _without_unneeded(), without_mounted_save():
        for part in _PARTS:
            importlib.import_module(part)


_import_delphi()


class TokenwiseTokenizer:
    """A tokenizer for delphi, which decodes a row of ids to one string for each.

    delphi marks active tokens by splitting `batch_decode(ids)` of a `[n]` tensor; since
    transformers 5 that is one string for all, and no token would be marked, without an error. Two
    dimensions and all else are the tokenizer's own.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_tokenizer"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_tokenizer":
            object.__setattr__(self, name, value)
        else:
            setattr(self._tokenizer, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._tokenizer(*args, **kwargs)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def batch_decode(self, sequences: Any, *args: Any, **kwargs: Any) -> list[str]:
        rows = torch.as_tensor(sequences).tolist() if _is_array(sequences) else list(sequences)
        if not rows or isinstance(rows[0], int):
            rows = [[token] for token in rows]
        return [self._tokenizer.decode(row, *args, **kwargs) for row in rows]


def _is_array(value: Any) -> bool:
    return hasattr(value, "tolist")
