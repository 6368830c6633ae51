"""`sparsify-crosscoder stitch RUN`: affine maps between the residual streams of a run's models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..command_line import run_command
from ..command_options import UsualOptions, group, option
from ..interventions.stitching_config import StitchingConfig, StitchText


@dataclass(frozen=True)
class Options:
    """Fit an affine map from each of two models' residual streams to the other's, on text that the
    run did not train on. What shares a passage with text that it did train on is left out."""

    run: Path = option(positional=True)
    """run folder: its models, hookpoints and tokenizers"""

    out: Path = option()
    """folder for the stitching"""

    dataset: list[str] | None = option(None, metavar="D")
    """other text; without, what the run held out and what lies behind its --max_examples"""

    split: str = StitchText.split
    """split of the datasets ({default})"""

    text_column: str | None = None
    """column of the datasets (the run's)"""

    data_args: str = ""
    """arguments of the first, as in training"""

    pairs: int = StitchText.pairs
    """to fit, at most ({default:,})"""

    held_out_pairs: int = StitchText.held_out_pairs
    """of whole texts, to judge by ({default:,})"""

    sources: tuple[int, int] = option(StitchingConfig.sources, metavar=("A", "B"))
    """which two of the run's models, by number (0 1)"""

    inversion_weight: float = StitchingConfig.inversion_weight
    """weight of the round trips' errors ({default})"""

    steps: int = StitchingConfig.steps
    """training steps ({default})"""

    learning_rate: float = StitchingConfig.learning_rate
    """of Adam at the first step ({default:g})"""

    seed: int = 0
    """order of the pairs ({default})"""

    usual: UsualOptions = group(UsualOptions)


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    run_command("sparsify-crosscoder stitch", Options, show, argv)


def show(options: Options) -> dict[str, Any]:
    """Stitch two of a run's models together, write and print the outcome and return it."""
    from ..interventions.stitch import stitch, stitching_text
    from ..runs.run import Run

    run = Run.open(options.run, **options.usual.hub.access)
    config = StitchingConfig(
        outlier_multiple=run.config.outlier_multiple,
        sources=options.sources,
        inversion_weight=options.inversion_weight,
        steps=options.steps,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    text = StitchText(
        options.dataset or (),
        options.split,
        options.text_column,
        options.data_args,
        options.pairs,
        options.held_out_pairs,
    )
    stitching = stitch(run, config, text, out=options.out, device=options.usual.device)
    print(stitching_text(stitching))
    return {
        "run": str(options.run),
        "out": str(options.out),
        "config": asdict(config),
        "sources": stitching.sources,
        "text": stitching.text,
        "report": stitching.report,
    }
