"""What installed packages offer under a name: the entry points of a group."""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points


def offered(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of a group, of all packages.

    Found once for each state of `sys.path`: looking reads the names of everything installed.
    """
    return _offered(group, tuple((path, _changed(path)) for path in sys.path))


@lru_cache(maxsize=32)
def _offered(group: str, paths: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    del paths
    return tuple(entry_points(group=group))


def _changed(path: str) -> int:
    """When something was last installed in a folder, in nanoseconds; 0 where there is none."""
    try:
        return os.stat(path or os.curdir).st_mtime_ns
    except OSError:
        return 0
