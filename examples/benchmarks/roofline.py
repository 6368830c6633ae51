"""What a training step of the paper's size takes on a GPU, counted on a computer without one.

    python examples/benchmarks/roofline.py --json roofline.json

Every operation of a step is dispatched on CUDA tensors without contents (`pretended_gpu`) and
counted by the bytes, operations and launches that it needs at least (`step_meter`). Each kernel
takes the longer of its bytes over the memory's rate and its operations over the rate of its
precision, never less than a launch. That is a floor for these kernels, not a measurement: a real
GPU is slower. Counted besides are how often the host waits for the GPU, how many kernels are
launched, the most memory that is held, and whether anything is on the wrong device.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import pretended_gpu

LATENTS, PAIRS = 131_072, 2_048
WIDTHS = {"llama_qwen": (4096, 4096), "gptoss_deepseek": (4096, 2880)}
"""Of the two YAML files of `examples/paper`."""


@dataclass(frozen=True)
class Case:
    """A step to count."""

    arch: str
    widths: tuple[int, int]
    k: int
    dead: float = 0.0
    """Share of the latents that AuxK revives."""

    options: dict[str, Any] = field(default_factory=dict)
    """Of the architecture, other than the defaults; those of the YAML files."""

    @property
    def name(self) -> str:
        dead = f", {self.dead:.0%} dead" if self.dead else ""
        paper = ", as printed" if self.options == AS_PRINTED else ""
        paper += ", AuxK in TF32" if self.options == TF32 else ""
        return f"{self.arch} {self.widths[0]} + {self.widths[1]}, k = {self.k:,}{dead}{paper}"


AS_PRINTED = {
    "selection": "joint",
    "rank_by": "activation",
    "reduce": "mean",
    "auxk_form": "residual",
}
"""Options of a step that the YAML files take from the paper and our defaults do not."""


TF32 = {"auxk_products": "tf32"}


CASES = [
    Case("dfc", WIDTHS["llama_qwen"], 200),
    Case("dfc", WIDTHS["llama_qwen"], 1000),
    Case("dfc", WIDTHS["llama_qwen"], 200, dead=0.05),
    Case("dfc", WIDTHS["llama_qwen"], 200, dead=0.05, options=TF32),
    Case("crosscoder", WIDTHS["llama_qwen"], 200),
    Case("rdfc", WIDTHS["llama_qwen"], 200),
    Case("dsf", WIDTHS["llama_qwen"], 200),
    Case("dfc", WIDTHS["gptoss_deepseek"], 200),
    Case("dfc", WIDTHS["llama_qwen"], 200, options=AS_PRINTED),
    Case("dfc", WIDTHS["llama_qwen"], 200, dead=0.05, options=AS_PRINTED),
    Case("dense", WIDTHS["llama_qwen"], 200),
]


def count(case: Case) -> dict[str, Any]:
    """Count one step of a case, the second after construction. See `step_meter.Metered`."""
    import torch
    from step_meter import Meter

    from sparsify_crosscoder.training.optimizers import take_step

    # A little more than the selected entries reach the level of the step before.
    meter = Meter(share=1.05 * case.k / LATENTS)
    with pretended_gpu.pretended(meter):
        module = _dense(case) if case.arch == "dense" else _crosscoder(case)
        if case.dead:
            meter.by_length = {len(block): case.dead for block in module.partition.blocks}
        built = meter.live
        adam = torch.optim.Adam(module.parameters(), lr=1e-4, fused=True)
        for _ in range(2):
            meter.start()
            batch = [
                torch.empty(PAIRS, d, device="cuda", dtype=torch.bfloat16) for d in case.widths
            ]
            module.loss(batch).backward()
            if case.arch == "dense":
                torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            take_step([adam], [module], 0.0 if case.arch == "dense" else 1.0)
            del batch
        read = meter.read()
    return {
        "case": case.name,
        "milliseconds": 1e3 * read.seconds,
        "gigabytes_built": built / 1e9,
        "gigabytes": read.peak / 1e9,
        "launches": read.launches,
        "waits": read.waits,
        "mixed": meter.mixed,
        "slowest": {name: 1e3 * seconds for name, seconds in read.slowest},
    }


def _crosscoder(case: Case) -> Any:
    """Ours, called as its trainer calls it."""
    import torch

    from sparsify_crosscoder.registry import get_architecture

    found = get_architecture(case.arch)
    cfg = found.config_class(num_latents=LATENTS, k=case.k, **case.options)
    sae = found.coder_class(list(case.widths), cfg, device="cuda").train()

    def loss(batch: list[Any]) -> Any:
        dead = torch.zeros(LATENTS, dtype=torch.bool, device="cuda") if case.dead else None
        x = sae.normalize(batch)
        with torch.autocast("cuda", torch.bfloat16):
            out = sae(x, normalized=True, dead_mask=dead, padded=False)
        sae.update_threshold(out.cuts, 0.999)
        return out.loss + 0.03 * out.auxk_loss

    sae.loss = loss
    return sae


def _dense(case: Case) -> Any:
    """A crosscoder with BatchTopK in the fewest dense operations, in bfloat16 by autocast."""
    import torch

    module = torch.nn.Module()
    width = sum(case.widths)
    shapes = {"encoder": (LATENTS, width), "decoder": (LATENTS, width)}
    for name, shape in (shapes | {"b_enc": (LATENTS,), "b_dec": (width,)}).items():
        module.register_parameter(name, torch.nn.Parameter(torch.empty(shape, device="cuda")))

    def loss(batch: list[Any]) -> Any:
        x = torch.cat(batch, 1).float()
        with torch.autocast("cuda", torch.bfloat16):
            acts = torch.nn.functional.linear(x, module.encoder, module.b_enc).relu()
            cut = acts.detach().flatten().topk(case.k * PAIRS, sorted=False).values.min()
            decoded = (acts * (acts >= cut)) @ module.decoder + module.b_dec
        return (decoded.float() - x).square().sum()

    module.loss = loss  # pyright: ignore[reportAttributeAccessIssue]
    return module


def main(argv: Sequence[str]) -> None:
    """Count the cases, and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the first case alone")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    try:
        pretended_gpu.load()
    except RuntimeError as error:
        parser.error(str(error))
    rows = [count(case) for case in (CASES[:1] if args.quick else CASES)]
    for row in rows:
        print(
            f"{row['case']:44} {row['milliseconds']:7.1f} ms  {row['gigabytes']:5.1f} GB  "
            f"{row['launches']:,} launches, {row['waits']} waits"
        )
    if args.json:
        from sparsify_crosscoder.files import atomic_write_json

        atomic_write_json(args.json, rows)


if __name__ == "__main__":
    main(sys.argv[1:])
