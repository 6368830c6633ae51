"""`sparsify-crosscoder stability RUN RUN ...`: which differences several runs find."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..command_line import execute
from ..crosscoders import Crosscoder
from ..evaluation.clusters import clusters
from ..evaluation.false_exclusives import filter_exclusives
from ..evaluation.stability import FoundClusters, stability
from ..harvest.model_identity import source_names
from .filter import add_filter_options, filter_config

SHOWN = 20


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    execute(_parser(), run, argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Filter every run, match what they found on the first run's pairs, print and return it."""
    from ..hardware import pick_device
    from ..runs.config import load_run_config
    from ..runs.pairs import load_pairs

    if len(args.runs) < 2:
        raise ValueError("Stability compares two runs or more; name several run folders.")
    device = pick_device(args.device)
    options = [
        load_run_config(run, args.hf_token, trust_remote_code=args.trust_remote_code)
        for run in args.runs
    ]
    pairs = load_pairs(options[0], device)
    found, verdicts = [], {}
    for name, (run, own) in tqdm(
        zip(_names(args.runs), zip(args.runs, options, strict=True), strict=True),
        desc="Filtering",
        total=len(args.runs),
        unit="run",
    ):
        crosscoder = Crosscoder.load_one(run, None, device)
        filtered = filter_exclusives(crosscoder, pairs, filter_config(args, own.outlier_multiple))
        found.append(FoundClusters(name, crosscoder, clusters(crosscoder, filtered)))
        verdicts[name] = filtered.counts()
    outcome = stability(found, pairs, num_pairs=args.pairs)
    names = source_names(found[0].crosscoder.sources)
    for one in found:
        print(f"{one.name}: {verdicts[one.name]['kept']:,} kept, {len(one.clusters):,} clusters")
    for count in range(len(found), 1, -1):
        of = [sum(d.source == s for d in outcome.found_by(count)) for s in range(len(names))]
        parts = ", ".join(f"{n:,} of {name}" for n, name in zip(of, names, strict=True))
        print(f"differences that {count} runs or more found: {parts}")
    print(
        f"By chance, the best match of 99 in 100 clusters correlates "
        f"{outcome.null_correlation:.3f} at most."
    )
    print(outcome.table(SHOWN))
    return {
        "runs": dict(zip(outcome.runs, map(str, args.runs), strict=True)),
        "verdicts": verdicts,
        "clusters": {one.name: [cluster.to_dict() for cluster in one.clusters] for one in found},
        "null_correlation": outcome.null_correlation,
        "differences": [one.to_dict() for one in outcome.differences],
    }


def _names(runs: Sequence[Path]) -> list[str]:
    """The runs' folder names, or their paths where these are not different."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparsify-crosscoder stability",
        description="Filter several runs over the same models, of other seeds, sizes or "
        "architectures, and match the differences that they found by direction and by activation "
        "on the same pairs. What only one run finds may be an accident of its training.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders")
    add_filter_options(parser)
    return parser
