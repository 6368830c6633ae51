"""`python -m delphi_adapters explain RUN`: what latents stand for, and which of them matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsify_crosscoder.command_options import group, option
from sparsify_crosscoder.evaluation.filter_config import FilterOptions
from sparsify_crosscoder.runs.run import Run

from ..explaining.autointerp import JudgingConfig
from ..explaining.explain_run import ExplainConfig, ExplainedRun, explain_run
from .judge_options import JudgeOrNone, run_asking_command


@dataclass(frozen=True)
class Options:
    """Describe latents of a run by their characteristic words and the tokens that they promote, or
    with a --judge, a language model, explain, flag and score them (B.4.1, B.4.2) through delphi's
    pipeline. A run that was stopped goes on; no answer is paid for twice. Without --latents: those
    that are exclusive by their norm."""

    run: Path = option(positional=True)
    """run folder"""

    judge: JudgeOrNone = group(JudgeOrNone)

    out: Path | None = None
    """folder for the results (RUN/delphi)"""

    latents: list[str] = option(["exclusive"])
    """numbers of latents, 'exclusive', 'listed' (those and the ones of the first 20 differences in
    the list of `filter`), 'kept' by the filter or 'all' (exclusive)"""

    source: int = ExplainConfig.source
    """whose tokens are shown ({default})"""

    ctx_len: int = ExplainConfig.ctx_len
    """tokens of a cached row ({default})"""

    windows: int | None = None
    """windows of the text to cache (all)"""

    num_examples: int = JudgingConfig.num_examples
    """examples that an explanation is made from ({default})"""

    example_ctx_len: int = JudgingConfig.example_ctx_len
    """tokens of an example ({default})"""

    n_examples_shown: int = JudgingConfig.n_examples_shown
    """examples in one request of the detection test ({default})"""

    threshold: float = JudgingConfig.threshold
    """least detection score of an interpretable latent ({default})"""

    no_held_out: bool = False
    """explanations that pass the detection test are not tested on weaker passages, which they were
    not written from"""

    seed: int | None = None
    """which of several --init_seeds"""

    no_filter: bool = False
    """without the filter's verdicts"""

    filter: FilterOptions = group(FilterOptions)


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    run_asking_command("python -m delphi_adapters explain", Options, show, argv)


def show(options: Options) -> dict[str, Any]:
    """Cache, filter, explain, flag, score and sort; print a summary and return it."""
    usual = options.filter.usual
    run = Run.open(options.run, **usual.hub.access)
    folder = options.out or options.run / "delphi"
    config = ExplainConfig(
        options.latents,
        options.source,
        options.ctx_len,
        options.windows,
        JudgingConfig(
            num_examples=options.num_examples,
            example_ctx_len=options.example_ctx_len,
            n_examples_shown=options.n_examples_shown,
            threshold=options.threshold,
        ),
        None if options.no_filter else options.filter.config(run.config),
        weaker=not options.no_held_out,
    )
    judge = options.judge.config(usual.device, trust_remote_code=usual.hub.trust_remote_code)
    found = explain_run(
        run, judge, config, folder, seed=options.seed, dry_run=options.judge.dry_run
    )
    if isinstance(found, ExplainedRun):
        if found.ledger is not None:
            cost = found.ledger.cost
            print(f"Answers cost ${cost:.4f}, those of earlier runs included.")
        print(f"Everything is in '{folder}'; the table of all latents is features.parquet.")
    return found.to_dict()
