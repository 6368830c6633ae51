"""A GPU that is not there: CUDA tensors without memory, on a CPU build of torch.

Fake tensors (`torch._subclasses`) have shapes, types and devices, and no contents. Autograd asks a
device for its streams besides; `pretended_gpu.cpp` answers, compiled by g++ in some seconds. It has
to be loaded before torch is, so that this module imports nothing of torch at its top.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

SOURCE = Path(__file__).with_name("pretended_gpu.cpp")


def why_not() -> str | None:
    """Why no GPU can be pretended on this machine, if so."""
    if _compiler() is None:
        return "A C++ compiler is needed: install g++."
    if not (_torch() / "lib" / "libtorch_cpu.so").is_file():
        return "torch's libraries are not where they are on Linux."
    if (_torch() / "lib" / "libtorch_cuda.so").is_file():
        return "This torch has CUDA of its own; a CPU build is needed."
    return None


def _compiler() -> str | None:
    return shutil.which("g++") or shutil.which("clang++")


def _torch() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def load() -> None:
    """Let torch believe in one GPU, in this process. Raises RuntimeError where that cannot be."""
    if "torch" in sys.modules:
        raise RuntimeError("A GPU is pretended before torch is imported.")
    if (reason := why_not()) is not None:
        raise RuntimeError(reason)
    torch = _torch()
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(torch / "lib" / name), ctypes.RTLD_GLOBAL)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "pretended_gpu.so"
        words = [
            str(_compiler()),
            "-std=c++20",
            "-O0",
            "-shared",
            "-fPIC",
            f"-I{torch / 'include'}",
        ]
        words += [str(SOURCE), f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu", "-o", str(library)]
        done = subprocess.run(words, capture_output=True, encoding="utf-8")
        if done.returncode:
            raise RuntimeError(f"{SOURCE.name} does not compile: {done.stderr[-400:]}")
        ctypes.CDLL(str(library))


@contextmanager
def pretended(meter: Any) -> Any:
    """CUDA tensors without contents, native bfloat16, and Triton's kernels counted by `meter`."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from sparsify_crosscoder.crosscoders import crosscoder
    from sparsify_crosscoder.crosscoders.kernels import serving, triton_kernels

    def instead(of: Any, name: str, value: Any) -> Any:
        return mock.patch.object(of, name, value)

    with ExitStack() as stack:
        for patched in (
            instead(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            instead(torch.cuda, "is_bf16_supported", lambda **_: True),
            instead(torch.cuda, "get_device_capability", lambda *_: (9, 0)),
            instead(crosscoder, "has_native_bfloat16", lambda _: True),
            instead(serving, "_triton_works", lambda *_: True),
            instead(triton_kernels, "_has_triton", lambda: True),
            instead(triton_kernels, "weighted_row_sums", meter.weighted_row_sums),
            instead(triton_kernels, "paired_dots", meter.paired_dots),
            instead(triton_kernels, "rounded", meter.rounded),
        ):
            stack.enter_context(patched)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=False))
        stack.enter_context(meter)
        yield
