"""What this machine is used with: device, dtype of the models, threads, memory.

Every model that is loaded gets its device and dtype here. torch is imported by the functions that
need it, so that a command can set what OpenMP reads when torch loads it.

Dtypes are those that a device computes in natively:

| device                                  | reading text     | writing text     |
|-----------------------------------------|------------------|------------------|
| cuda from sm_80 on, ROCm                | bfloat16         | bfloat16         |
| older cuda, checkpoint kept in float16  | float16          | float16          |
| older cuda, any other checkpoint        | float32          | float32          |
| cpu with AVX512-BF16 or AMX             | bfloat16         | float32          |
| any other cpu; mps and all other kinds  | float32          | float32          |

Activations of models that were trained in bfloat16 can be too large for float16 (Gemma's are), so
only a checkpoint that is itself in float16 runs in it. Metal computes in bfloat16 only from its
third version on, and emulates it on the first chips. Writing is one token at a time: its products
are as slow as memory is, bfloat16 gains nothing reliable there, and greedy answers are surer in
float32.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .endings import UsageError

if TYPE_CHECKING:
    import torch

Purpose = Literal["read", "write"]
"""What a model is loaded for: forwards over whole texts, or texts token by token."""

_WITH_BFLOAT16 = ("avx512_core_bf16", "avx512_core_fp16", "avx512_core_amx", "avx10")
"""How the instruction sets of oneDNN begin that multiply in bfloat16."""

OPENMP_DEFAULTS = {"OMP_WAIT_POLICY": "PASSIVE"}
"""What our commands tell OpenMP, where the user has not: a thread that waits for another sleeps.

By default it spins, for milliseconds, and where another process has taken the core of the thread
that is waited for, a step of training takes five times as long. Read when torch is loaded. Measured
by examples/benchmarks/sharing.py.
"""


def share_cores() -> list[str]:
    """Set what of OPENMP_DEFAULTS the environment does not have; returns the names."""
    missing = [name for name in OPENMP_DEFAULTS if name not in os.environ]
    os.environ.update({name: OPENMP_DEFAULTS[name] for name in missing})
    return missing


def pick_device(requested: str | torch.device | None = None) -> torch.device:
    """The device asked for; None is this process's CUDA device (by LOCAL_RANK), MPS or the CPU.

    Raises UsageError, naming the devices that there are, if this machine has no such device.
    """
    import torch

    if requested is not None:
        return _existing_device(requested)
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _existing_device(requested: str | torch.device) -> torch.device:
    import torch

    try:
        device = torch.device(requested)
        if device.type == "meta":
            raise RuntimeError("nothing can be computed on meta")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        known = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        known += ["mps"] if torch.backends.mps.is_available() else []
        reason = str(error).splitlines()[0]
        # torch lists all device types it has ever had, or explains operators.
        reason = f": {reason}" if len(reason) < 100 else ""
        raise UsageError(
            f"There is no device {str(requested)!r} here{reason}. There is {', '.join(known)}."
        ) from error
    return device


def pick_model_dtype(
    device: torch.device | str,
    requested: str | torch.dtype = "auto",
    *,
    load_in_8bit: bool = False,
    purpose: Purpose = "read",
    stored: torch.dtype | None = None,
) -> torch.dtype:
    """The dtype that a model runs in: `requested`, or for "auto" the fastest that is safe.

    "auto" is float16 for 8-bit models, and else what the table above says; `stored` is the dtype
    that the checkpoint is kept in, None where that is not known. Raises ValueError for an unknown
    name.
    """
    import torch

    if isinstance(requested, torch.dtype):
        return requested
    if requested != "auto":
        dtype = getattr(torch, requested, None)
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ValueError(
                f"Unknown dtype {requested!r}: use auto, float32, bfloat16 or float16."
            )
        return dtype
    if load_in_8bit:
        return torch.float16
    device = torch.device(device)
    if has_native_bfloat16(device) and not (device.type == "cpu" and purpose == "write"):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" and stored == torch.float16 else torch.float32


def has_native_bfloat16(device: torch.device | str) -> bool:
    """Whether a device multiplies matrices in bfloat16 natively.

    A CPU that is told to behave like an older one (ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA) is
    taken for one.
    """
    import torch

    device = torch.device(device)
    if device.type == "cuda":
        if device.index is None or torch.cuda.device_count() < 2:
            return torch.cuda.is_bf16_supported(including_emulation=False)
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or _is_held_back():
        return False
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def _is_held_back() -> bool:
    """Whether torch or oneDNN is kept from the instructions that multiply in bfloat16.

    torch's own probes of the CPU do not look at what says so.
    """
    import torch

    asked = os.environ.get("ATEN_CPU_CAPABILITY", "").lower()
    has_avx512 = getattr(torch.cpu, "_is_avx512_supported", lambda: False)()
    used = torch.backends.cpu.get_cpu_capability()
    if asked in ("default", "avx2") or (has_avx512 and not used.startswith("AVX512")):
        return True
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        most = os.environ.get(name, "").lower()
        if most.startswith(("sse", "avx")) and not most.startswith(_WITH_BFLOAT16):
            return True
    return not torch.backends.mkldnn.is_available()


def available_memory() -> int:
    """Bytes of the machine's memory that are not in use; a petabyte where that is not known."""
    with suppress(OSError, ValueError, IndexError):
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
        return 1024 * int(text.split("MemAvailable:")[1].split()[0])
    return 10**15


def give_back_memory() -> None:
    """Free what only cycles of references hold, and give free pages back to the system (glibc)."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
