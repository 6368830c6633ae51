"""Steer one of the demo's models with a latent that it has and the other has not.

    python examples/steer_a_feature.py                     the first latent that the filter keeps
    python examples/steer_a_feature.py --latents 33 --words error exception

After `make demo`. Four commands, one after the other, as a user would type them: `filter` ranks the
exclusive latents, `top` shows where the chosen one fires, `stitch` fits maps between the models
(once; some minutes), and `steer` pushes the latent's own model with it and the other model with its
stitched vector. Curves of both are left beside the answers in runs/steering.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from shown_command import call


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--out", type=Path, default=Path("runs/steering"))
    parser.add_argument("--latents", type=int, nargs="+", help="latents to steer with, together")
    parser.add_argument("--words", nargs="+", default=[], help="words whose probability to follow")
    parser.add_argument("--strengths", nargs="+", default=["0", "0.5", "1", "2", "4"])
    parser.add_argument("--max_new_tokens", default="40")
    args = parser.parse_args()
    if not (args.run / "summary.json").exists():
        raise SystemExit(f"'{args.run}' is no finished run; `make demo` makes one.")
    args.out.mkdir(parents=True, exist_ok=True)

    latents = args.latents or [first_kept(args.run, args.out / "filter.json")]
    call("top", args.run, "--latents", *latents)
    stitching = args.out / "stitching"
    if not (stitching / "cfg.json").exists():
        call("stitch", args.run, "--out", stitching)
    words = ["--words", *args.words] if args.words else []
    call(
        *("steer", args.run, "--latents", *latents, "--stitching", stitching, *words),
        *("--strengths", *args.strengths, "--max_new_tokens", args.max_new_tokens),
        *("--plot", args.out / "steer.png", "--json", args.out / "steer.json"),
    )


def first_kept(run: Path, file: Path) -> int:
    """The first latent of the difference that the filter ranks first."""
    if not file.exists():
        call("filter", run, "--json", file)
    clusters = json.loads(file.read_text(encoding="utf-8"))["clusters"]
    if not clusters:
        raise SystemExit("The filter keeps no latent of this run; choose some with --latents.")
    return clusters[0]["latents"][0]


if __name__ == "__main__":
    main()
