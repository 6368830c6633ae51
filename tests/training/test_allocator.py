import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from sparsify_crosscoder.training.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(16 * 2**20).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([faults() for _ in range(5)][-1])  # an aligned block does not fit into its own place at once
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_memory_that_was_freed_is_used_again_without_fresh_pages():
    faults = {}
    for mode in ("keep", "default"):
        command = [sys.executable, "-c", SCRIPT, mode]
        done = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8")
        faults[mode] = int(done.stdout.split()[-1])
    # 64 MiB are 16,384 pages, or 32 huge ones where the system gives those.
    assert faults["keep"] < 10 < faults["default"]
