"""Opening datasets: files and folders by their literal names, saved datasets, names on the hub."""

import codecs
import glob
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from .data_args import read_data_args
from .data_faults import (
    POINTER,
    FaultError,
    check_head,
    check_nulls,
    fault,
    first_line,
    pointer,
    reason_of,
)
from .data_files import (
    BUILDERS,
    COMPRESSIONS,
    builder_of,
    ending_of,
    files_in,
    head_of,
    literal,
    plain_file,
)

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


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
        raise FileNotFoundError(f"Dataset {name} not found: {first_line(error)}") from error
    except StopIteration:
        data = Dataset.from_dict({})  # what the json builder makes of a file without rows
    except MemoryError:
        raise
    except Exception as error:
        # datasets lets through what pandas, pyarrow and others raise for what they cannot read.
        reason = reason_of(error)
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
    is_path = name.startswith((".", "/", "~")) or ending_of(name)[0] in BUILDERS
    if is_path or not _HUB_NAME.fullmatch(name):
        raise FileNotFoundError("no such file or folder")
    return datasets.load_dataset(name, split=split, **read_data_args(data_args))


def _open_file(path: Path, split: str, data_args: Mapping[str, Any] | str | None) -> Dataset:
    ending, compression = ending_of(path.name)
    if ending not in BUILDERS:
        raise ValueError(
            f"a file must be one of {', '.join(BUILDERS)}, as it is or compressed "
            f"({', '.join(COMPRESSIONS)})"
        )
    builder = BUILDERS[ending]
    options = read_data_args(data_args, builder)
    file = plain_file(path, compression)
    head = head_of(file)
    check_head(path, head, builder, options)
    if builder == "json":
        check_nulls(path, file, head)
    if ending == ".tsv" and not {"sep", "delimiter"} & options.keys():
        options["sep"] = "\t"
    options = _defaults(builder, [head]) | options
    files = glob.escape(str(file))
    try:
        return datasets.load_dataset(builder, data_files=files, split=split, **options)
    except (StopIteration, MemoryError):
        raise
    except Exception as error:
        found = fault(file, ending, options)
        if found is None:
            raise
        raise FaultError(found) from error


def _defaults(builder: str, heads: Iterable[bytes]) -> dict[str, Any]:
    """Options with which nothing in a file of text is taken for something else."""
    defaults: dict[str, Any] = {}
    if builder == "csv":  # pandas takes the words "None" and "NA" for missing ones
        defaults = {"keep_default_na": False, "na_values": [""]}
    if builder in ("text", "csv") and any(head.startswith(codecs.BOM_UTF8) for head in heads):
        defaults["encoding"] = "utf-8-sig"
    return defaults


def _open_folder(path: Path, split: str, data_args: Mapping[str, Any] | str | None) -> Any:
    heads = {file: head_of(file) for file in files_in(path) if builder_of(file)}
    for file, head in heads.items():
        if head.startswith(POINTER):
            raise ValueError(pointer(file))
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        return _select_split(datasets.load_from_disk(str(literal(path))), split)
    options = read_data_args(data_args)
    builders = {builder_of(file) for file in heads}
    if len(builders) == 1:
        options = _defaults(builders.pop(), heads.values()) | options
    for file, head in heads.items():
        if builder_of(file) == "json":
            check_nulls(file, file, head)
    try:
        data = datasets.load_dataset(str(literal(path)), split=split, **options)
        _warn_of_unread(path, [*heads], data)
        return data
    except (FileNotFoundError, StopIteration, MemoryError):
        raise
    except Exception as error:
        for file in files_in(path):
            ending, compression = ending_of(file.name)
            if ending in BUILDERS:
                check_head(file, head_of(plain_file(file, compression)), BUILDERS[ending], options)
                found = fault(plain_file(file, compression), ending, options)
                if found is not None:
                    raise FaultError(f"{file}: {found}") from error
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


def _warn_of_unread(folder: Path, files: list[Path], data: Any) -> None:
    """Say which files of a folder were left out because most are of another kind."""
    read = data.info.builder_name if isinstance(data, Dataset) else None
    unread = [file.name for file in files if read and builder_of(file) != read]
    if unread:
        logging.getLogger(__name__).warning(
            "Of the folder %s only the files that are read as %s are read; left out: %s%s.",
            folder,
            read,
            ", ".join(unread[:3]),
            f" and {len(unread) - 3} more" if len(unread) > 3 else "",
        )
