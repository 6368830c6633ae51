"""`sparsify-crosscoder graft RUN`: what the reconstruction does in place of the activation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..command_line import run_command
from ..command_options import UsualOptions, group, option
from ..evaluation.filter_config import FilterConfig
from ..interventions.graft_config import GraftConfig

if TYPE_CHECKING:
    from ..runs.run import Run


@dataclass(frozen=True)
class Options:
    """Put the crosscoder's reconstruction in place of each model's activation, and measure what
    that does to the next tokens: change of the cross-entropy, KL divergence from the model as it
    is, share of the loss recovered against zeros and the mean, and what exclusive, kept and shared
    latents contribute. Activations that are no end of an aligned pair stay as they are."""

    run: Path = option(positional=True)
    """run folder"""

    graft: GraftConfig = group(GraftConfig)

    filter: Path | None = None
    """what `filter --json` wrote, for the latents that it keeps (the filter is run if the run has a
    store)"""

    seed: int | None = None
    """which of several --init_seeds"""

    usual: UsualOptions = group(UsualOptions)


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    run_command("sparsify-crosscoder graft", Options, show, argv)


def show(options: Options) -> dict[str, Any]:
    """Graft, print the outcome and return it."""
    from ..interventions.graft import check_heads, graft
    from ..runs.run import Run

    run = Run.open(options.run, **options.usual.hub.access)
    check_heads(run)
    found = graft(
        run,
        options.graft,
        kept=_kept(run, options),
        seed=options.seed,
        device=options.usual.device,
    )
    print(found.text())
    return {"run": str(options.run), **found.to_dict()}


def _kept(run: Run, options: Options) -> list[list[int]] | None:
    """What the filter keeps, by source; None where that is not known."""
    from ..evaluation.filter import FilterRecord, filter_exclusives
    from ..runs.pairs import run_store

    if options.filter is not None:
        return FilterRecord.read(options.filter, "Write it anew with `filter --json`.").kept
    if run_store(run.config) is None:
        print("The run has no store: what the filter keeps is left out (--filter names it).")
        return None
    config = FilterConfig(outlier_multiple=run.config.outlier_multiple)
    found = filter_exclusives(run, config, seed=options.seed, device=options.usual.device)
    return [found.kept(s) for s in range(len(found.verdicts))]
