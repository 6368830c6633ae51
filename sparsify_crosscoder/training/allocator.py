"""How a training process keeps its memory between steps."""

import ctypes
import platform

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NO_LIMIT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep what it frees instead of giving it back to the system (glibc only).

    A training step on a CPU allocates and frees the gradients of all weights. By default each goes
    back to the system, and the next step pays for fresh pages: a third of its time. Affects the
    whole process, so it is the command that calls this, not the library. Returns whether it
    could be done.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NO_LIMIT))
