"""What the paper's two diffs take: bytes, memory, hours of a GPU, requests and dollars of a judge.

    python examples/paper/estimates.py                               both files beside this one
    python examples/paper/estimates.py --gpu A100 --judge claude-haiku-4-5 --latents exclusive

Everything here is computed, nothing is run: no GPU time below has been measured by us. Operations
and bytes are counted, by the formulas of examples/benchmarks; a GPU's rates are its maker's; how
near a training step comes to its floor is what ours reached on a CPU; how much there is to judge is
what the paper found; prompts are built and their characters counted. `--quick` changes nothing,
since there is nothing to leave out.
"""

from __future__ import annotations

import importlib
import io
from contextlib import redirect_stdout

if __name__ == "__main__":
    with redirect_stdout(io.StringIO()):  # it prints whether there is Triton
        importlib.import_module("sparsify")

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpu_costs
import judge_costs
from audit_file import AuditFile, read_audit_file
from estimate_tables import show
from gpu_costs import Assumed
from public_facts import DIFFS, GPUS, Diff

from sparsify_crosscoder.files import atomic_write_json

HERE = Path(__file__).parent
FILES = [HERE / f"{name}.yaml" for name in DIFFS]


def estimate(
    file: AuditFile,
    diff: Diff,
    assumed: Assumed,
    *,
    judge: str | None = None,
    latents: str | None = None,
    interpretable_share: float = 1.0,
) -> dict[str, Any]:
    """All figures of one diff as JSON values; `judge` and `latents` replace those of the file."""
    run, audit = file.run, file.audit
    tokens_each = gpu_costs.tokens_per_pair(diff)
    data = gpu_costs.data_sizes(run, tokens_each)
    tokens = data["tokens_per_model"]
    training = gpu_costs.training(run, assumed.gpu)
    crosscoder = gpu_costs.crosscoder_of(run)
    gpu = {
        "harvest": gpu_costs.harvest(run, tokens, assumed),
        "cache": gpu_costs.latent_cache(run, crosscoder, tokens, assumed),
        "stitch": gpu_costs.stitching(run, audit.stitch_pairs, tokens_each, assumed),
        "exclusivity": gpu_costs.steering(audit, diff, assumed),
        "rubrics": gpu_costs.rubrics(audit, assumed),
    }
    judge_name: str = judge or audit.judge
    chosen: str = latents or " ".join(audit.latents)
    sizes = judge_costs.measure(audit)
    asked = {
        choice: judge_costs.stages(
            sizes,
            audit,
            diff,
            run.sae.num_latents,
            latents=choice,
            interpretable_share=interpretable_share,
        )
        for choice in dict.fromkeys([chosen, "all", "exclusive"])
    }
    return {
        "models": [run.model, *run.partners],
        "data": data,
        "training": training,
        "crosscoders": diff.seeds,
        **gpu,
        "judge": {
            "name": judge_name,
            "latents": chosen,
            "stages": [
                {
                    **stage._asdict(),
                    "dollars": judge_costs.dollars(stage, judge_name),
                    "dollars_by_batches": judge_costs.dollars(stage, judge_name, batch=True),
                }
                for stage in asked[chosen]
            ],
            "by_batches": {
                name: {
                    choice: sum(judge_costs.dollars(stage, name, batch=True) for stage in some)
                    for choice, some in asked.items()
                }
                for name in dict.fromkeys([judge_name, *judge_costs.judges()])
            },
        },
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    unknown = [file.name for file in args.files if file.stem not in DIFFS]
    if unknown:
        parser.error(f"what the paper found is known for {', '.join(DIFFS)}, not {unknown[0]}.")
    if not 0 < args.forward_share <= 1 or args.tokens_per_second <= 0:
        parser.error("--forward_share is above 0 and at most 1, --tokens_per_second positive.")
    if not 0 <= args.interpretable_share <= 1:
        parser.error("--interpretable_share lies between 0 and 1.")
    assumed = Assumed(GPUS[args.gpu], args.forward_share, args.tokens_per_second)
    report = {
        "gpu": args.gpu,
        "assumed": assumed._asdict() | {"gpu": assumed.gpu._asdict()},
        "diffs": {
            file.stem: estimate(
                read_audit_file(file),
                DIFFS[file.stem],
                assumed,
                judge=args.judge,
                latents=args.latents,
                interpretable_share=args.interpretable_share,
            )
            for file in args.files
        },
    }
    if args.json:
        atomic_write_json(args.json, report)
    print(
        f"Computed for one {args.gpu}, {args.forward_share:.0%} of its bf16 peak in forward passes "
        f"and {args.tokens_per_second:,.0f} tokens generated a second; not measured on a GPU."
    )
    for one in report["diffs"].values():
        print(f"\n{show(one)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    default = Assumed(GPUS["H100"])
    parser.add_argument("files", type=Path, nargs="*", default=FILES, help="both, if left out")
    parser.add_argument("--gpu", choices=list(GPUS), default="H100", help="the paper's (H100)")
    parser.add_argument(
        "--forward_share",
        type=float,
        default=default.forward_share,
        help=f"of its bf16 peak that forward passes reach ({default.forward_share})",
    )
    parser.add_argument(
        "--tokens_per_second",
        type=float,
        default=default.tokens_per_second,
        help=f"that it generates, all answers of a batch together ({default.tokens_per_second:g})",
    )
    parser.add_argument("--judge", choices=judge_costs.judges(), help="instead of the file's")
    parser.add_argument("--latents", choices=["all", "exclusive"], help="instead of the file's")
    parser.add_argument(
        "--interpretable_share",
        type=float,
        default=1.0,
        help="of steered directions that are clear enough to be compared (1)",
    )
    parser.add_argument("--quick", action="store_true", help="the same: nothing is measured")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
