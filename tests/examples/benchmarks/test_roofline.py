"""A training step of the paper's size on a GPU that is not there: what it holds and waits for."""

import json
import subprocess
import sys
from textwrap import dedent

import pretended_gpu
import pytest

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="torch's libraries are loaded as on Linux"),
    pytest.mark.skipif(pretended_gpu.why_not() is not None, reason=str(pretended_gpu.why_not())),
    pytest.mark.xdist_group("roofline"),
]

BENCHMARKS = str(pretended_gpu.SOURCE.parent)


def in_a_process_of_its_own(code: str, *argv: str) -> str:
    """What it prints; torch must not have been imported in it before."""
    code = f"import sys; sys.path.insert(0, {BENCHMARKS!r})\n{dedent(code)}"
    words = [sys.executable, "-c", code, *argv]
    done = subprocess.run(words, capture_output=True, encoding="utf-8", timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """What the benchmark counts, by case."""
    file = tmp_path_factory.mktemp("roofline") / "found.json"
    code = "import roofline; roofline.main(['--json', sys.argv[1]])"
    in_a_process_of_its_own(code, str(file))
    return {row["case"]: row for row in json.loads(file.read_text(encoding="utf-8"))}


BUDGETS = {
    # milliseconds, gigabytes, launches, waits
    "dfc 4096 + 4096, k = 200": (40.1, 33.5, 450, 22),
    "dfc 4096 + 4096, k = 1,000": (95, 33.5, 450, 22),
    "dfc 4096 + 4096, k = 200, 5% dead": (57.5, 33.5, 555, 26),
    "dfc 4096 + 4096, k = 200, 5% dead, AuxK in TF32": (44, 33.5, 555, 26),
    "crosscoder 4096 + 4096, k = 200": (43, 35, 180, 8),
    "rdfc 4096 + 4096, k = 200": (49, 34, 460, 22),
    "dsf 4096 + 4096, k = 200": (42, 34, 325, 16),
    "dfc 4096 + 2880, k = 200": (35, 28.5, 450, 22),
    "dfc 4096 + 4096, k = 200, as printed": (44, 33.5, 430, 20),
    "dfc 4096 + 4096, k = 200, 5% dead, as printed": (61, 33.5, 525, 24),
}


@pytest.mark.parametrize("case", BUDGETS)
def test_a_step_keeps_to_its_budget_and_to_one_device(case, rows):
    milliseconds, gigabytes, launches, waits = BUDGETS[case]
    row = rows[case]
    assert row["mixed"] == []
    assert row["milliseconds"] <= milliseconds
    assert row["gigabytes"] <= gigabytes
    assert row["launches"] <= launches
    assert row["waits"] <= waits


def test_a_sparse_step_without_dead_latents_is_no_slower_than_a_dense_one(rows):
    dense = rows["dense 4096 + 4096, k = 200"]
    # Decoding, what it gives back to the activations, and the gradients of both matrices.
    products = 1e3 * 4 * 2 * 2048 * 131_072 * 8192 / 989e12
    assert dense["slowest"]["mm"] == pytest.approx(products, rel=0.01)
    assert rows["dfc 4096 + 4096, k = 200"]["milliseconds"] < dense["milliseconds"]


def test_what_is_built_is_the_parameters_and_adam_moves_each_eight_times(rows):
    row = rows["dfc 4096 + 4096, k = 200"]
    exclusive = 2 * 6_554
    weights = 2 * ((131_072 - exclusive) * 8192 + exclusive * 4096) + 131_072 + 8192
    assert row["gigabytes_built"] == pytest.approx(4 * weights / 1e9, rel=1e-3)
    assert row["slowest"]["_fused_adam_"] == pytest.approx(8 * 4 * weights / 4.8e9, rel=1e-3)
    assert row["gigabytes"] > 4 * row["gigabytes_built"]  # with gradients and two moments


def test_the_meter_counts_what_is_known():
    code = """
        import json
        import pretended_gpu
        pretended_gpu.load()
        import torch
        from step_meter import Meter
        meter = Meter(share=0.25, by_length={8: 0.5})
        found = {}
        with pretended_gpu.pretended(meter):
            a, b = torch.empty(1024, 512, device="cuda"), torch.empty(512, 256, device="cuda")
            meter.start()
            held = meter.live
            product = a @ b
            found["product"] = [meter.bytes, meter.operations, meter.launches, meter.peak - held]
            del product
            found["freed"] = meter.live - held
            meter.start()
            mask = torch.ones(8, 8, device="cuda", dtype=torch.bool)
            places = [len(mask.nonzero()), len(a[:8][mask[0]]), int(mask.sum())]
            found["places"] = [*places, meter.waits]
            try:
                (a + torch.empty(1024, 512)).sum()
            except RuntimeError:
                pass
            found["mixed"] = meter.mixed
            w = torch.nn.Parameter(torch.empty(512, 256, device="cuda"))
            (a @ w).sum().backward()
            found["gradient"] = str(w.grad.device)
        print("found", json.dumps(found))
    """
    found = json.loads(in_a_process_of_its_own(code).partition("found")[2])
    moved = 4 * (1024 * 512 + 512 * 256 + 1024 * 256)
    assert found["product"] == [moved, 2 * 1024 * 512 * 256, 1, 4 * 1024 * 256]
    assert found["freed"] == 0
    assert found["places"] == [16, 4, 0, 3]
    assert found["mixed"] == ["add"]
    assert found["gradient"] == "cuda:0"
