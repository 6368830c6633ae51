"""The one chooser of device and dtype, and how the threads of commands wait."""

import gc
import os
import subprocess
import sys
import weakref

import pytest
import torch

from sparsify_crosscoder._autoload import SparsifyMainFinder
from sparsify_crosscoder.hardware import (
    give_back_memory,
    has_native_bfloat16,
    pick_device,
    pick_model_dtype,
)
from sparsify_crosscoder.harvest.sources import load_language_model
from sparsify_crosscoder.surroundings import command_surroundings

WAITING = "OMP_WAIT_POLICY"
F16, F32, BF16 = torch.float16, torch.float32, torch.bfloat16
ISA = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


@pytest.fixture
def cpu(monkeypatch):
    """Makes torch say of the CPU what is asked for; nothing holds it back."""
    for name in ("ATEN_CPU_CAPABILITY", *ISA):
        monkeypatch.delenv(name, raising=False)

    def make(*, bf16=False, amx=False, avx512=True, used="AVX512"):
        found = {"avx512_bf16": bf16, "amx_tile": amx, "avx512": avx512}
        for name, value in found.items():
            monkeypatch.setattr(
                torch.cpu, f"_is_{name}_supported", lambda value=value: value, raising=False
            )
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: used)

    return make


@pytest.fixture
def cuda(monkeypatch):
    def make(native):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: native
        )

    return make


@pytest.mark.parametrize(
    ("device", "native", "purpose", "stored", "dtype"),
    [
        ("cuda", True, "read", None, BF16),
        ("cuda:0", True, "write", F32, BF16),
        ("cuda", True, "write", F16, BF16),
        ("cuda", False, "read", F16, F16),
        ("cuda", False, "write", F16, F16),
        ("cuda", False, "read", BF16, F32),
        ("cuda:0", False, "write", BF16, F32),
        ("cuda", False, "read", F32, F32),
        ("cuda", False, "read", None, F32),
        ("cpu", True, "read", BF16, BF16),
        ("cpu", True, "read", F16, BF16),
        ("cpu", True, "write", BF16, F32),
        ("cpu", False, "read", BF16, F32),
        ("cpu", False, "write", F16, F32),
        ("mps", True, "read", BF16, F32),
        ("mps", True, "write", F16, F32),
        ("xpu", True, "read", BF16, F32),
    ],
)
def test_a_model_runs_in_the_fastest_dtype_that_is_native_and_safe(
    cpu, cuda, device, native, purpose, stored, dtype
):
    cpu(bf16=native)
    cuda(native)
    assert pick_model_dtype(device, purpose=purpose, stored=stored) == dtype
    for asked in (F16, "float16", BF16, "bfloat16", F32, "float32"):
        wanted = asked if isinstance(asked, torch.dtype) else getattr(torch, asked)
        assert pick_model_dtype(device, asked, purpose=purpose, stored=stored) == wanted
    assert pick_model_dtype(device, load_in_8bit=True, purpose=purpose, stored=stored) == F16


@pytest.mark.parametrize(
    ("facts", "native"),
    [
        ({"bf16": True}, True),
        ({"amx": True}, True),
        ({}, False),
        ({"bf16": True, "used": "AVX2"}, False),
        ({"bf16": True, "amx": True, "used": "DEFAULT"}, False),
        ({"bf16": True, "used": "AVX512_VNNI"}, True),
        ({"avx512": False, "used": "AVX2"}, False),
        ({"avx512": False, "used": "SVE256"}, False),
    ],
)
def test_a_cpu_has_bfloat16_where_torch_uses_what_multiplies_in_it(cpu, facts, native):
    cpu(**facts)
    assert has_native_bfloat16("cpu") == native


@pytest.mark.parametrize(
    ("name", "value", "native"),
    [
        ("ATEN_CPU_CAPABILITY", "avx2", False),
        ("ATEN_CPU_CAPABILITY", "default", False),
        ("ATEN_CPU_CAPABILITY", "AVX2", False),
        ("ATEN_CPU_CAPABILITY", "avx512", True),
        *((name, "AVX2", False) for name in ISA),
        *((name, "SSE41", False) for name in ISA),
        (ISA[0], "avx2_vnni_2", False),
        (ISA[0], "AVX512_CORE", False),
        (ISA[0], "AVX512_CORE_VNNI", False),
        (ISA[0], "AVX512_CORE_BF16", True),
        (ISA[0], "AVX512_CORE_AMX", True),
        (ISA[0], "AVX10_1_512", True),
        (ISA[0], "DEFAULT", True),
        (ISA[0], "ALL", True),
    ],
)
def test_a_cpu_told_to_behave_like_an_older_one_is_taken_for_one(
    cpu, monkeypatch, name, value, native
):
    cpu(bf16=True, amx=True)
    monkeypatch.setenv(name, value)
    assert has_native_bfloat16("cpu") == native
    assert pick_model_dtype("cpu") == (BF16 if native else F32)


def test_of_several_gpus_the_one_is_asked_that_the_model_is_on(monkeypatch):
    current, asked = [0], []

    class On:
        def __init__(self, device):
            self.number = device.index

        def __enter__(self):
            current.append(self.number)

        def __exit__(self, *error):
            current.pop()

    def supported(including_emulation=True):
        asked.append(current[-1])
        return current[-1] == 1

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", On)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert [pick_model_dtype(f"cuda:{i}") for i in (0, 1)] == [F32, BF16]
    assert asked == [0, 1]


@pytest.fixture(params=[None, "ACTIVE", "passive"])
def asked(request, monkeypatch):
    """What the user has said of OpenMP's threads."""
    monkeypatch.setenv(WAITING, request.param or "")
    if request.param is None:
        monkeypatch.delenv(WAITING)
    return request.param


def test_threads_of_a_command_sleep_while_they_wait_unless_the_user_says_otherwise(asked):
    @command_surroundings()
    def command():
        return os.environ[WAITING]

    assert command() == (asked or "PASSIVE")
    assert os.environ.get(WAITING) == asked


@pytest.mark.parametrize(
    ("argv", "ours"),
    [
        (["sparsify", "m", "d", "--arch", "dfc"], True),
        (["/bin/sparsify", "--arch=rdfc"], True),
        (["-m", "m", "--arch", "dfc"], True),
        (["sparsify", "m", "d"], False),
        (["sparsify", "m", "--architecture", "dfc"], False),
        (["train.py", "--arch", "resnet"], False),
    ],
)
def test_of_sparsifys_commands_only_ours_say_how_threads_wait(argv, ours, asked, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "sparsify", *argv[1:]])
    for module in ("sparsify", "sparsify.trainer", "torch"):
        assert SparsifyMainFinder().find_spec(module) is None
    assert os.environ.get(WAITING) == (asked or ("PASSIVE" if ours else None))


def test_what_openmp_reads_is_set_before_torch_is_loaded_and_by_no_import():
    code = (
        "import os, sys; del sys.modules['sparsify_crosscoder._autoload'];"
        "import sparsify_crosscoder.__main__, delphi_adapters.__main__;"
        f"print('torch' in sys.modules, os.environ.get('{WAITING}'))"
    )
    env = {name: value for name, value in os.environ.items() if name != WAITING}
    done = subprocess.run(
        [sys.executable, "-c", code, "--arch", "dfc"],
        capture_output=True,
        text=True,
        check=True,
        env=env,
        encoding="utf-8",
    )
    assert done.stdout.strip() == "False None"


def test_a_model_that_writes_gets_the_dtype_for_writing(run, cpu):
    cpu(bf16=True)
    name = str(run.parent / "llama")
    assert load_language_model(name, device="cpu")[0].dtype == F32
    assert load_language_model(name, device="cpu", purpose="read")[0].dtype == BF16
    assert load_language_model(name, device="cpu", dtype="bfloat16")[0].dtype == BF16
    assert pick_device("cpu").type == "cpu"


def test_what_only_a_cycle_holds_is_given_back():
    class Node:
        pass

    gc.disable()
    try:
        node = Node()
        node.itself = node
        seen = weakref.ref(node)
        del node
        assert seen() is not None
        give_back_memory()
        assert seen() is None
    finally:
        gc.enable()
