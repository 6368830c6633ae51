"""Packages of others, written into a folder as an installer leaves them, without an installer."""

from collections.abc import Mapping
from pathlib import Path


def write_plugin(
    site: Path,
    name: str,
    files: Mapping[str, str],
    entry_points: Mapping[str, Mapping[str, str]] | None = None,
    version: str = "1.0",
) -> Path:
    """Write a distribution into the folder `site`, which a PYTHONPATH can name; returns `site`.

    `files` gives the source of each file by its path below `site`; `entry_points` by group, then by
    name, the `module:object` that it stands for.
    """
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    groups = [
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in entries.items()), ""])
        for group, entries in (entry_points or {}).items()
    ]
    metadata = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "entry_points.txt": "\n".join(groups),
    }
    for path, text in [
        *((site / path, text) for path, text in files.items()),
        *((info / path, text) for path, text in metadata.items()),
    ]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return site


def modules_of(files: Mapping[str, str]) -> set[str]:
    """Names of the modules and packages at the top of a distribution."""
    return {path.split("/")[0].removesuffix(".py") for path in files}
