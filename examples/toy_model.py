"""Find the concepts that only one of two models has, where it is known which they are.

    python examples/toy_model.py            a DFC and a residual DFC, two minutes on two cores

What `sparsify-crosscoder toy --preset small` does for five seeds, in Python and for one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sparsify_crosscoder.evaluation.toy.figures import table
from sparsify_crosscoder.evaluation.toy.grid import rows_of, run_grid
from sparsify_crosscoder.evaluation.toy.presets import PRESETS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/toy-example"))
    args = parser.parse_args()
    preset = PRESETS[args.preset]
    rows = rows_of(preset, [args.seed], ["dfc-10%", "rdfc-10%"], [0.5, 1.0])
    results = run_grid(preset, rows, args.out, jobs=2)
    print(table(results))
    print(
        "\nRecall: exclusive concepts that an exclusive latent has the direction of. False "
        "positives: exclusive latents\nthat have none. Filtered: after dropping latents that the "
        "other source predicts or that move its own part."
    )


if __name__ == "__main__":
    main()
