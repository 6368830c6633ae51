"""Opening datasets: files and folders by their literal names, saved datasets, names on the hub."""

import bz2
import codecs
import glob
import gzip
import json
import logging
import lzma
import mmap
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, config

from .data_args import read_data_args

BUILDERS = {
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
_COMPRESSIONS: dict[str, tuple[bytes, Callable[[str], Any]]] = {
    ".gz": (b"\x1f\x8b", gzip.open),
    ".bz2": (b"BZh", bz2.open),
    ".xz": (b"\xfd7zXZ\x00", lzma.open),
    ".zst": (b"\x28\xb5\x2f\xfd", lambda path: pa.input_stream(path, compression="zstd")),
}
_MAGIC = {
    b"\xff\xfe\x00\x00": ("text in UTF-32", "convert it to UTF-8"),
    b"PAR1": ("a parquet file", "rename it so that it ends in .parquet"),
    b"ARROW1": ("an Arrow file", "rename it so that it ends in .arrow"),
    b"PK\x03\x04": ("a zip archive", "unpack it"),
    b"SQLite": ("a database", "export its table as .jsonl"),
    b"\xff\xfe": ("text in UTF-16", "convert it to UTF-8, or add `--data_args encoding=utf-16`"),
    b"\xfe\xff": ("text in UTF-16", "convert it to UTF-8, or add `--data_args encoding=utf-16`"),
    b"<!DOCTYPE": ("a web page", "download the data itself"),
    b"<html": ("a web page", "download the data itself"),
}
_POINTER = b"version https://git-lfs"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_PIECE = 1 << 20
_NULL_FIRST = re.compile(rb"(\xef\xbb\xbf)?\s*\[?\s*null\b")


class _FaultError(ValueError):
    """What is wrong with a file, in words of our own."""


def open_dataset(name: str, split: str, data_args: Mapping[str, Any] | str | None) -> Dataset:
    """Open one dataset: a file, a folder, a dataset that was saved, or a name on the hub.

    Names of files and folders are taken literally, whatever characters they have. Raises
    FileNotFoundError for a dataset that does not exist and ValueError for one that cannot be read,
    naming the file and what to do.
    """
    if not name.strip():
        raise FileNotFoundError("No dataset is named: give a file, a folder or a name on the hub.")
    path = _existing(name)
    try:
        if path is None:
            data = _open_by_name(name, split, data_args)
        elif path.is_dir():
            data = _open_folder(path, split, data_args)
        else:
            data = _open_file(path, split, data_args)
    except (FileNotFoundError, ConnectionError) as error:
        raise FileNotFoundError(f"Dataset {name} not found: {_first_line(error)}") from error
    except StopIteration:
        data = Dataset.from_dict({})  # what the json builder makes of a file without rows
    except MemoryError:
        raise
    except Exception as error:
        # datasets lets through what pandas, pyarrow and others raise for what they cannot read.
        reason = _reason(error)
        if "corresponds to no data" in reason:
            raise ValueError(f"Dataset {name} is empty: there is no row in it.") from error
        if reason in ("Couldn't cast", "An error occurred while generating the dataset"):
            reason = (
                "not all of its rows have the same columns with the same types; make them alike, "
                "or name one file of them"
            )
        unknown = re.search(r"doesn't have a '(\w+)' key", reason)
        if unknown:
            reason = f"--data_args: it has no option {unknown[1]!r}; leave it off."
        raise ValueError(f"Dataset {name} could not be read: {reason}") from error
    if not isinstance(data, Dataset):
        raise ValueError(
            f"Dataset {name} is a {type(data).__name__}, whose rows have no numbers. Do not stream "
            'it; a part of a split is loaded with `split="train[:10000]"`.'
        )
    if not len(data):
        raise ValueError(f"Dataset {name} is empty: there is no row in it.")
    return data


def _existing(name: str) -> Path | None:
    """The file or folder of this name, `~` being the home folder only if no file is called so."""
    try:
        path = Path(name)
        path = path if path.exists() else path.expanduser()
        if path.exists():
            return Path(os.path.abspath(path))
    except (OSError, ValueError, RuntimeError):
        pass
    return None


def _open_by_name(name: str, split: str, data_args: Mapping[str, Any] | str | None) -> Any:
    is_path = name.startswith((".", "/", "~")) or _ending(name)[0] in BUILDERS
    if is_path or not _HUB_NAME.fullmatch(name):
        raise FileNotFoundError("no such file or folder")
    return datasets.load_dataset(name, split=split, **read_data_args(data_args))


def _open_file(path: Path, split: str, data_args: Mapping[str, Any] | str | None) -> Dataset:
    ending, compression = _ending(path.name)
    if ending not in BUILDERS:
        raise ValueError(
            f"a file must be one of {', '.join(BUILDERS)}, as it is or compressed "
            f"({', '.join(_COMPRESSIONS)})"
        )
    builder = BUILDERS[ending]
    options = read_data_args(data_args, builder)
    file = _plain(path, compression)
    head = _head(file)
    _check_head(path, head, builder, options)
    _check_nulls(path, file, head)
    if ending == ".tsv" and not {"sep", "delimiter"} & options.keys():
        options["sep"] = "\t"
    options = _defaults(builder, [head]) | options
    files = glob.escape(str(file))
    try:
        return datasets.load_dataset(builder, data_files=files, split=split, **options)
    except (StopIteration, MemoryError):
        raise
    except Exception as error:
        found = _fault(file, ending, options)
        if found is None:
            raise
        raise _FaultError(found) from error


def _defaults(builder: str, heads: Iterable[bytes]) -> dict[str, Any]:
    """Options with which nothing in a file of text is taken for something else."""
    defaults: dict[str, Any] = {}
    if builder == "csv":  # pandas takes the words "None" and "NA" for missing ones
        defaults = {"keep_default_na": False, "na_values": [""]}
    if builder in ("text", "csv") and any(head.startswith(codecs.BOM_UTF8) for head in heads):
        defaults["encoding"] = "utf-8-sig"
    return defaults


def _open_folder(path: Path, split: str, data_args: Mapping[str, Any] | str | None) -> Any:
    heads = {file: _head(file) for file in _files(path) if _builder(file)}
    for file, head in heads.items():
        if head.startswith(_POINTER):
            raise ValueError(_pointer(file))
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _select_split(datasets.load_from_disk(str(_literal(path))), split)
    options = read_data_args(data_args)
    builders = {_builder(file) for file in heads}
    if len(builders) == 1:
        options = _defaults(builders.pop(), heads.values()) | options
    for file, head in heads.items():
        _check_nulls(file, file, head)
    try:
        data = datasets.load_dataset(str(_literal(path)), split=split, **options)
        _warn_of_unread(path, [*heads], data)
        return data
    except (FileNotFoundError, StopIteration, MemoryError):
        raise
    except Exception as error:
        for file in _files(path):
            ending, compression = _ending(file.name)
            if ending in BUILDERS:
                _check_head(file, _head(_plain(file, compression)), BUILDERS[ending], options)
                found = _fault(_plain(file, compression), ending, options)
                if found is not None:
                    raise _FaultError(f"{file}: {found}") from error
        raise


def _select_split(data: Dataset | datasets.DatasetDict, split: str) -> Dataset:
    """The part of a saved dataset that `split` names, slices such as "train[:10%]" included."""
    if isinstance(data, Dataset):
        data = datasets.DatasetDict({split.partition("[")[0]: data})
    lengths = {name: len(part) for name, part in data.items()}
    if split == "all":
        return datasets.concatenate_datasets(list(data.values()))
    parts = [
        data[part.splitname].select(range(part.from_, part.to))
        for part in datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    ]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def _ending(name: str) -> tuple[str, str]:
    """The ending of a file's name and that of its compression, in lower case."""
    stem, ending = os.path.splitext(name.lower())
    if ending in _COMPRESSIONS:
        return os.path.splitext(stem)[1], ending
    return ending, ""


def _builder(file: Path) -> str:
    """What a file is read with by its ending, "" if by nothing."""
    return BUILDERS.get(_ending(file.name)[0], "")


def _with_lower_ending(name: str) -> str:
    """The name with its ending as `datasets` knows it."""
    size = sum(map(len, _ending(name))) if _builder(Path(name)) else 0
    return name[: len(name) - size] + name[len(name) - size :].lower()


def _plain(path: Path, compression: str) -> Path:
    """The file, unpacked if it is compressed, under a name that is no pattern and no address.

    Whether it is compressed is seen in the file. Raises ValueError for a damaged one.
    """
    head = _head(path)
    found = next((end for end, (magic, _) in _COMPRESSIONS.items() if head.startswith(magic)), "")
    if compression and not found and head and not head.startswith(_POINTER):
        raise ValueError(
            f"{path} is not compressed, although it ends in {compression}: rename it, or "
            "download it again"
        )
    if not found:
        return _literal(path)
    target = _place_of([path]) / f"data{_ending(path.name)[0]}"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        with _COMPRESSIONS[found][1](str(path)) as source, partial.open("wb") as sink:
            while piece := source.read(_PIECE):
                sink.write(piece)
        os.replace(partial, target)
    except (EOFError, OSError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        raise _FaultError(
            f"{path} cannot be unpacked ({_first_line(error)}): it is damaged; download or "
            "make it again"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def _literal(path: Path) -> Path:
    """The file or folder under a path that `datasets` takes for nothing else than a path."""
    files = [path] if path.is_file() else [*_files(path)]
    inside = [path.name] if path.is_file() else [str(file.relative_to(path)) for file in files]
    # Addresses, and names of variables that `datasets` would put the values of in place.
    odd = any(re.search(r"::|://|\n|\$", name) for name in [str(path), *inside])
    if path.is_dir():
        odd |= glob.has_magic(str(path)) or any(_with_lower_ending(n) != n for n in inside)
    if not odd:
        return path
    place = _place_of(files)
    if path.is_file():
        target = place / f"data{path.suffix}"
        _link(path, target)
        return target
    used: set[Path] = set()
    for file, name in zip(files, inside, strict=True):
        target = place / "data" / re.sub("[:\n$]", "_", _with_lower_ending(name))
        if target in used:
            target = target.with_name(f"{len(used)}_{target.name}")
        used.add(target)
        _link(file, target)
    return place / "data"


def _link(file: Path, target: Path) -> None:
    if not target.is_symlink():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file)


def _place_of(files: list[Path]) -> Path:
    """A folder in the cache that belongs to these files as they are now."""
    key = [(str(file), (stat := file.stat()).st_mtime_ns, stat.st_size) for file in files]
    cache = Path(os.path.abspath(config.HF_DATASETS_CACHE))
    if glob.has_magic(str(cache)) or re.search(r"::|\$", str(cache)):
        cache = Path(tempfile.gettempdir()) / f"sparsify_crosscoder_{os.getuid()}"
    return cache / "literal_names" / sha256(repr(key).encode("utf-8", "replace")).hexdigest()[:24]


def _files(folder: Path) -> Iterator[Path]:
    """The files that `datasets` looks at in a folder: none that is hidden, in a fixed order."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        yield from (Path(parent) / name for name in sorted(names) if not name.startswith("."))


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _check_nulls(path: Path, plain: Path, head: bytes) -> None:
    """Raise ValueError where a row of JSON is null: pyarrow does not survive some of them."""
    if _builder(path) != "json" or not head:
        return
    with plain.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = content.find(b"\nnull")
        if place < 0 and not _NULL_FIRST.match(head):
            return
        number = 1 + content[: place + 1].count(b"\n")
    raise ValueError(f"{path} has null for a row, in line {number}: take it out")


def _warn_of_unread(folder: Path, files: list[Path], data: Any) -> None:
    """Say which files of a folder were left out because most are of another kind."""
    read = data.info.builder_name if isinstance(data, Dataset) else None
    unread = [file.name for file in files if read and _builder(file) != read]
    if unread:
        logging.getLogger(__name__).warning(
            "Of the folder %s only the files that are read as %s are read; left out: %s%s.",
            folder,
            read,
            ", ".join(unread[:3]),
            f" and {len(unread) - 3} more" if len(unread) > 3 else "",
        )


def _pointer(file: Path) -> str:
    return f"{file} is a pointer of git-lfs, not the data: run `git lfs pull` in its folder"


def _check_head(path: Path, head: bytes, builder: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError if a file begins as one of another kind does."""
    if not head:
        raise ValueError(f"{path} is empty")
    if head.startswith(_POINTER):
        raise ValueError(_pointer(path))
    if builder == "parquet" and not head.startswith(b"PAR1"):
        raise ValueError(f"{path} is no parquet file, although it ends so: rename or replace it")
    if builder in ("parquet", "arrow") or "encoding" in options:
        return
    for magic, (kind, remedy) in _MAGIC.items():
        if head.startswith(magic):
            raise ValueError(f"{path} is {kind}: {remedy}")


def _fault(file: Path, ending: str, options: Mapping[str, Any]) -> str | None:
    """What is wrong in a file of text that could not be read, None if it is not known."""
    if BUILDERS[ending] in ("parquet", "arrow"):
        return "it is damaged or cut short; make or download it again"
    encoding = options.get("encoding", "utf-8-sig")
    try:
        with file.open(encoding=encoding) as lines:
            for number, line in enumerate(lines, start=1):
                if ending in (".jsonl", ".ndjson") and line.strip() and not _is_json(line):
                    return f"line {number} is not JSON: {line.strip()[:60]!r}"
        if ending == ".json":
            return _json_fault(file, encoding)
    except UnicodeDecodeError as error:
        return (
            f"it is not {encoding.removesuffix('-sig')} (byte {error.object[error.start]:#04x}): "
            "convert it, or name its encoding with `--data_args encoding=latin-1`"
        )
    except (OSError, LookupError):
        pass
    return None


def _json_fault(file: Path, encoding: str) -> str | None:
    text = file.read_text(encoding=encoding)
    if _is_json(text) or all(_is_json(line) for line in text.splitlines() if line.strip()):
        return None
    return "it is neither one JSON value nor one in each line"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None and not isinstance(error, _FaultError):
        error = error.__cause__
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
