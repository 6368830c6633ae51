"""How every command ends: with 0, with one line and 1, with 2 for wrong use, with 130 for Ctrl-C.

The traceback of what went wrong is shown with `--debug`, which every command takes anywhere on its
command line, or with `SPARSIFY_CROSSCODER_DEBUG=1`.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import select
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

FAILED, WRONG_USE, READER_GONE, INTERRUPTED = 1, 2, 141, 130
AGAIN = "the same command begins again"
DEBUG = "--debug"

_OURS = ("sparsify_crosscoder", "delphi_adapters")
_LONGEST = 400  # characters of a library's message
# Names under which code keeps the file that it is reading.
_PLACES = ("file", "path", "filename", "checkpoint_file", "fname", "weights", "folder")
_PLACES += ("resolved_file", "pretrained_model_name_or_path", "name_or_path", "dirname")
# Packages whose own exceptions say that a file is not what it should be, or what a server said.
_FORMATS = {"safetensors_rust", "safetensors", "pyarrow", "yaml", "json", "csv", "_csv", "zipfile"}
_FORMATS |= {"zlib", "_lzma", "lzma", "pickle", "_pickle", "struct", "jinja2", "tokenizers"}
_FORMATS |= {"datasets", "orjson", "pyexpat", "xml"}
_SERVERS = {"huggingface_hub", "requests", "httpx", "httpcore", "urllib3", "aiohttp", "anthropic"}
_SERVERS |= {"openai", "ssl", "socket"}
# What installs a package that is not always there.
_EXTRAS = {"anthropic": "anthropic", "nnsight": "nnsight", "numba": "fast", "matplotlib": "demo"}
_EXTRAS |= {"gradio": "serve", "openai": "openai"}
_EXTRAS |= dict.fromkeys(("delphi", "orjson", "blobfile", "jaxtyping", "yaml"), "delphi")
_EXTRAS |= dict.fromkeys(("plotly", "kaleido", "pandas"), "delphi-log")
_REMEDIES = {
    errno.ENOSPC: "make room there and run the same command again",
    errno.EDQUOT: "make room there and run the same command again",
    errno.EROFS: "name a folder that can be written to",
    errno.EACCES: "change who may use it, or name another",
    errno.EPERM: "change who may use it, or name another",
    errno.EMFILE: "raise the limit with `ulimit -n 4096` and run the same command again",
    errno.ENFILE: "close other programs and run the same command again",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ENOMEM: "close other programs or use less at a time",
}
_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")


class UsageError(ValueError):
    """An option has a value that makes no sense on this machine."""


def take_debug(argv: Sequence[str]) -> tuple[list[str], bool]:
    """The command line without `--debug`, and whether tracebacks are wanted."""
    wanted = os.environ.get("SPARSIFY_CROSSCODER_DEBUG", "0") not in ("", "0")
    return [arg for arg in argv if arg != DEBUG], wanted or DEBUG in argv


def prepare(parser: argparse.ArgumentParser) -> None:
    """Have a parser list `--debug`, and say in one line what is wrong with a command line."""
    parser.add_argument(
        DEBUG,
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the traceback where something fails",
    )

    def error(message: str) -> NoReturn:
        line = " ".join(message.split())
        print(
            f"{parser.prog}: error: {line}{_meant(parser, line)} ({parser.prog} --help lists the "
            "options)",
            file=sys.stderr,
        )
        raise SystemExit(WRONG_USE)

    parser.error = error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What to say of a name that is close to known ones, beginning with a space, else ""."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f" Did you mean {close[0]}?" if close else ""


def unknown_options(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """Options on a command line that the parser, once it has parsed, does not know."""
    known = parser._option_string_actions
    named = [arg.partition("=")[0] for arg in argv if arg.startswith("--") and len(arg) > 2]
    return [name for name in named if known and not any(o.startswith(name) for o in known)]


def _meant(parser: argparse.ArgumentParser, message: str) -> str:
    """Options that those a parser does not know may have been meant for."""
    _, found, unknown = message.partition("unrecognized arguments: ")
    if not found:
        return ""
    known = parser._option_string_actions
    said = (did_you_mean(one.partition("=")[0], known) for one in unknown.split() if one[0] == "-")
    return "".join(f"{'' if i else '.'}{text}" for i, text in enumerate(filter(None, said)))


@contextmanager
def ending(program: str, *, goes_on: str = AGAIN, debug: bool = False) -> Iterator[None]:
    """Turn what is raised inside into the end of the process, as the module says.

    `goes_on` ends the sentence "interrupted; ...". Raises SystemExit, and nothing else.
    """
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        _show(error, debug)
        _say(f"{program}: interrupted; {goes_on}.")
        raise SystemExit(INTERRUPTED) from error
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            raise SystemExit(READER_GONE) from error
        _show(error, debug)
        _say(f"{program}: error: {in_one_line(error)}")
        code = WRONG_USE if isinstance(error, UsageError) else FAILED
        raise SystemExit(code) from error


def in_one_line(error: BaseException) -> str:
    """What went wrong, where, and what to do about it.

    Messages of this project's own ValueError, OSError and ImportError say that themselves.
    """
    while isinstance(inner := getattr(error, "exceptions", None), tuple) and inner:
        error = inner[0]  # of a group
    frames = _frames(error)
    ours = not frames or _package(frames[-1]) in _OURS or _came_from_a_worker(error)
    said = " ".join(str(error).split())
    if len(said) > _LONGEST:
        said = said[:_LONGEST] + " ..."
    kind, package = type(error).__name__, type(error).__module__.partition(".")[0]
    place = _place(frames)
    if isinstance(error, MemoryError) or any(text in said.lower() for text in _NO_MEMORY):
        return (
            f"Out of memory{place} ({said or kind}). Use less at a time (a smaller --batch_size, "
            "fewer latents or pairs), or another --device."
        )
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _missing(error.name, said)
    if isinstance(error, OSError) and error.errno is not None:
        return _of_the_system(error, place)
    if isinstance(error, ValueError | OSError | ImportError) and ours and said:
        return str(error).strip()
    if package in _SERVERS:
        return (
            f"{kind}: {said or 'no answer'}{place}. Check the name, the token and the network, "
            "and run the same command again."
        )
    if isinstance(error, RecursionError):
        return f"Something is nested too deeply{place}: restore that file, or make it anew."
    broken = package in _FORMATS or isinstance(error, UnicodeError | EOFError)
    if broken or (type(error) is Exception and not ours):
        return (
            f"{kind}: {said}{place}. What was read is damaged or of another format: restore it, "
            "or make it anew."
        )
    if isinstance(error, ValueError | OSError | ImportError) and said:
        return (
            f"{said}{'' if said.endswith('.') else '.'}{f' It happened{place}.' if place else ''}"
        )
    return (
        f"{kind}: {said or 'no message'}{place}. Run again with {DEBUG} for the traceback; this is "
        "a fault of the program, unless what it reads there is damaged."
    )


def _missing(module: str, said: str) -> str:
    package = module.partition(".")[0]
    extra = _EXTRAS.get(package)
    if extra is None:
        return f"{said}: pip install {package}"
    return f"{package} is not installed: pip install 'sparsify-crosscoder[{extra}]'"


def _of_the_system(error: OSError, place: str) -> str:
    said = error.strerror or str(error)
    if error.filename is not None:
        name = error.filename if isinstance(error.filename, str) else str(error.filename)
        said += f": '{name}'"
    elif str(error) and not str(error).startswith("[Errno"):
        said = str(error)
    else:
        said += place
    assert error.errno is not None
    remedy = _REMEDIES.get(error.errno)
    return f"{said}{'; ' + remedy if remedy else ''}."


def _frames(error: BaseException) -> list[FrameType]:
    """Where the error was, the innermost last."""
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _came_from_a_worker(error: BaseException) -> bool:
    return type(error.__cause__).__name__ in ("_RemoteTraceback", "RemoteTraceback")


def _place(frames: Sequence[FrameType]) -> str:
    """The best guess of where: the file that was being read, or else the module."""
    ours = [i for i, frame in enumerate(frames) if _package(frame) in _OURS]
    inner = frames[ours[-1] :] if ours else frames
    for frame in reversed(inner):
        for name in _PLACES:
            value = frame.f_locals.get(name)
            if isinstance(value, str | Path) and str(value) not in ("", ".") and _exists(value):
                return f" while reading '{value}'"
    module = str(frames[ours[-1]].f_globals.get("__name__", "")) if ours else ""
    return f" in {module}" if module and module != __name__ else ""


def _exists(path: str | Path) -> bool:
    with suppress(OSError, ValueError):
        return os.path.exists(path)
    return False


def _reader_is_gone() -> bool:
    """Whether what reads the standard output (`| head`) has ended; it is then closed quietly."""
    try:
        number = sys.stdout.fileno()
        watch = select.poll()
        watch.register(number, select.POLLERR)
        gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in watch.poll(0))
    except (AttributeError, OSError, ValueError):  # Windows, or no file
        return False
    if gone:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)  # Python flushes once more when it ends
        os.close(nowhere)
    return gone


def _show(error: BaseException, debug: bool) -> None:
    if debug:
        with suppress(OSError, ValueError):
            traceback.print_exception(error)


def _say(line: str) -> None:
    # A name on the command line may hold bytes that are no text.
    with suppress(OSError, ValueError):
        print(line.encode("utf-8", "backslashreplace").decode("utf-8"), file=sys.stderr, flush=True)
