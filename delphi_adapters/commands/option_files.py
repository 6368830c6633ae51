"""Files of options: YAML as the tokens of a command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_option_file(parser: argparse.ArgumentParser, path: Path) -> Iterator[str]:
    """A YAML file as the tokens of a command line."""
    import yaml

    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        parser.error(f"there is no file '{path}' for --config.")
    except IsADirectoryError:
        parser.error(f"'{path}' is a folder; name a YAML file for --config.")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        parser.error(f"'{path}' is no YAML: {error}")
    if not isinstance(loaded, dict):
        parser.error(f"'{path}' has to name options and their values, such as `k: 200`.")
    models = [loaded.pop(name, None) for name in ("model_a", "model_b")]
    if all(models):
        yield from map(str, models)
    elif any(models):
        parser.error(f"'{path}' names one model; give model_a and model_b, or neither.")
    for name, value in loaded.items():
        if name == "config":
            parser.error(f"'{path}' names another --config; put all options into one file.")
        yield from _tokens(parser, str(name), value)


def _tokens(parser: argparse.ArgumentParser, name: str, value: Any) -> list[str]:
    if value is None:
        return []
    action = parser._option_string_actions.get(f"--{name}")
    if action is not None and action.nargs == 0:
        return [f"--{name}"] if value else []
    values = value if isinstance(value, list) else [value]
    return [f"--{name}", *map(str, values)]
