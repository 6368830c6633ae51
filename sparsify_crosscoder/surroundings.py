"""What a command finds around it: streams, caches, and what libraries say.

Only what needs no more than the standard library is imported here. Everything that a command
changes for its time is put back when it ends; importing this package changes nothing.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout, suppress
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from .hardware import share_cores

BAR_DELAY = 2.0
"""Seconds that something takes before the bar of a library shows it."""

_OURS = ("sparsify_crosscoder", "delphi_adapters")
_LIBRARIES = ("transformers", "datasets", "huggingface_hub")
_VERBOSITIES = ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "HF_HUB_VERBOSITY")
_COMPILED = "TORCHINDUCTOR_CACHE_DIR"
_OF_CODE = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning)
_entered = False


@contextmanager
def command_surroundings() -> Iterator[None]:
    """Run a command so that it works wherever it is started and its user sees what concerns them.

    - What a stream's encoding does not have is written as `\\xab`, never an error. A closed stream
      is a writable nothing. A command line that only UTF-8 can spell has Python begin again in its
      UTF-8 mode, where the locale has another encoding.
    - Libraries speak of errors alone, their progress bars come after BAR_DELAY seconds, and what
      importing sparsify prints is dropped. `TRANSFORMERS_VERBOSITY`, `DATASETS_VERBOSITY`,
      `HF_HUB_VERBOSITY` and Python's `-W` still have their say.
    - Warnings of this project are lines `warning: ...` on the standard error, each once.
    - Where datasets cannot keep its cache, it has a temporary folder.
    - Threads of OpenMP that wait let other processes have their cores (see `share_cores`).

    Also a decorator. A command inside another changes nothing.
    """
    global _entered
    if _entered:
        yield
        return
    _entered = True
    with ExitStack() as stack:
        stack.callback(_leave)
        _begin_again_in_utf8()
        _open_streams()
        stack.enter_context(_spoken_warnings())
        stack.enter_context(_environment())
        stack.enter_context(_cache_to_write_to())
        if "sparsify" in sys.modules:
            stack.enter_context(_quiet_libraries())
        else:
            finder = SilentImport("sparsify", lambda: stack.enter_context(_quiet_libraries()))
            sys.meta_path.insert(0, finder)  # pyright: ignore[reportArgumentType]
            stack.callback(finder.remove)
        yield


def _leave() -> None:
    global _entered
    _entered = False


def _begin_again_in_utf8() -> None:
    """Without UTF-8 a name such as `données` reaches no library that expects text."""
    asked = os.environ.get("PYTHONUTF8") == "1"
    if asked or os.name == "nt" or sys.getfilesystemencoding().lower() == "utf-8":
        return
    if any(_only_bytes(text) for text in (*sys.argv, os.getcwd())):
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _only_bytes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _open_streams() -> None:
    # What is opened next would otherwise be what a library writes to as standard output.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            with suppress(ValueError):  # closed
                stream.reconfigure(errors="backslashreplace")


class _Spoken(logging.Handler):
    """Shows a warning as one line, above the progress bars, once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        kind = "warning" if record.levelno < logging.ERROR else "error"
        line = f"{kind}: {' '.join(record.getMessage().split())}"
        if line in self._said:
            return
        self._said.add(line)
        bars = sys.modules.get("tqdm")
        with bars.tqdm.external_write_mode(file=sys.stderr) if bars else nullcontext():
            print(line, file=sys.stderr, flush=True)


@contextmanager
def _spoken_warnings() -> Iterator[None]:
    """Our warnings in lines of their own, those of libraries not at all."""
    spoken, before = _Spoken(), []
    for name in _OURS:
        logger = logging.getLogger(name)
        before.append((logger, logger.propagate))
        if os.environ.get("RANK", "0") == "0":
            logger.addHandler(spoken)
        logger.propagate = bool(logging.getLogger().handlers)
    last = logging.lastResort
    level = last.level if last else logging.WARNING
    if last:
        last.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.showwarning = _show_warning
        try:
            yield
        finally:
            if last:
                last.setLevel(level)
            for logger, propagate in before:
                logger.removeHandler(spoken)
                logger.propagate = propagate


def _show_warning(message: Any, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
    for name in _OURS:
        folder = os.path.dirname(getattr(sys.modules.get(name), "__file__", None) or "")
        if folder and filename.startswith(folder + os.sep) and not issubclass(category, _OF_CODE):
            logging.getLogger(name).warning("%s", message)


@contextmanager
def _environment() -> Iterator[None]:
    """What libraries read when they are imported."""
    ours = [name for name in _VERBOSITIES if name not in os.environ]
    os.environ.update(dict.fromkeys(ours, "error"))
    ours += share_cores()
    # torch makes this folder as it is imported; without the variable it takes a temporary one.
    compiled = os.environ.get(_COMPILED)
    if compiled is not None and not _can_write(Path(compiled)):
        del os.environ[_COMPILED]
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
        if compiled is not None:
            os.environ[_COMPILED] = compiled


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """What can only be asked of libraries once they are imported."""
    with ExitStack() as stack:
        for library, variable in zip(_LIBRARIES, _VERBOSITIES, strict=True):
            logger = logging.getLogger(library)
            stack.callback(logger.setLevel, logger.level)
            if os.environ.get(variable) == "error":
                logger.setLevel(logging.ERROR)
        of_transformers = sys.modules.get("transformers.utils.logging")
        if set_hook := getattr(of_transformers, "set_tqdm_hook", None):
            stack.callback(set_hook, set_hook(_delayed_bar))
        if of_datasets := sys.modules.get("datasets.utils.tqdm"):
            stack.enter_context(_delayed(of_datasets.tqdm))
        yield


def _delayed_bar(factory: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    return factory(*args, **{"delay": BAR_DELAY, **kwargs})


@contextmanager
def _delayed(bar: Any) -> Iterator[None]:
    original = bar.__init__

    def delayed(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **{"delay": BAR_DELAY, **kwargs})

    bar.__init__ = delayed
    try:
        yield
    finally:
        bar.__init__ = original


@contextmanager
def _cache_to_write_to() -> Iterator[None]:
    """Give datasets a temporary cache where its own cannot be written to."""
    folder = _datasets_cache()
    if _can_write(folder):
        yield
        return
    before = os.environ.get("HF_DATASETS_CACHE")
    temporary = tempfile.mkdtemp(prefix="sparsify-crosscoder-")
    logging.getLogger(__name__).warning(
        "The cache of datasets, '%s', cannot be written to; '%s' is used until the command ends. "
        "HF_HOME names another place.",
        folder,
        temporary,
    )
    os.environ["HF_DATASETS_CACHE"] = temporary
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        if config := sys.modules.get("datasets.config"):
            for name, value in (
                ("HF_DATASETS_CACHE", Path(temporary)),
                ("DOWNLOADED_DATASETS_PATH", Path(temporary) / "downloads"),
                ("EXTRACTED_DATASETS_PATH", Path(temporary) / "downloads" / "extracted"),
            ):
                stack.callback(setattr, config, name, getattr(config, name))
                setattr(config, name, value)
        try:
            yield
        finally:
            if before is None:
                os.environ.pop("HF_DATASETS_CACHE", None)
            else:
                os.environ["HF_DATASETS_CACHE"] = before


def _datasets_cache() -> Path:
    """Where datasets keeps what it prepares: as it decides itself when it is imported."""
    if config := sys.modules.get("datasets.config"):
        return Path(config.HF_DATASETS_CACHE)
    caches = os.environ.get("XDG_CACHE_HOME", os.path.join("~", ".cache"))
    home = os.environ.get("HF_HOME", os.path.join(caches, "huggingface"))
    folder = os.environ.get("HF_DATASETS_CACHE", os.path.join(home, "datasets"))
    return Path(os.path.expandvars(os.path.expanduser(folder)))


def _can_write(folder: Path) -> bool:
    if folder.parts[:1] == ("~",):  # nobody knows whose
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def wandb_is_set_up() -> bool:
    """Whether somebody has set up Weights & Biases here; only then is it imported, which asks for
    a key otherwise and leaves folders behind."""
    if any(os.environ.get(f"WANDB_{name}") for name in ("API_KEY", "MODE", "BASE_URL")):
        return True
    named = os.environ.get("NETRC")
    for file in [named] if named else ["~/.netrc", "~/_netrc"]:
        with suppress(OSError):
            if "wandb" in Path(os.path.expanduser(file)).read_text("utf-8", "replace"):
                return True
    return False


class SilentImport:
    """Finds one module, whose import then prints nothing; `then` is called after it."""

    def __init__(self, name: str, then: Any = None):
        self.name = name
        self.then = then

    def remove(self) -> None:
        """Find nothing any more."""
        with suppress(ValueError):
            sys.meta_path.remove(self)  # pyright: ignore[reportArgumentType]

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        self.remove()
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _SilentLoader(spec.loader, self.then)  # pyright: ignore
        return spec


class _SilentLoader:
    def __init__(self, original: Any, then: Any):
        self._original, self._then = original, then

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._original.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._original
        with redirect_stdout(io.StringIO()):
            self._original.exec_module(module)
        if self._then is not None:
            self._then()
