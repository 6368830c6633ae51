"""What the benchmarks say of the machine they ran on."""

from __future__ import annotations

import platform
import re
from pathlib import Path


def processor() -> str:
    """The processor's name."""
    try:
        found = re.search(
            r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M
        )
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()
