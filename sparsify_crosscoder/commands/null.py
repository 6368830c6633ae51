"""`sparsify-crosscoder null RUN`: what the tool lists where nothing is to be found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..command_line import run_command
from ..command_options import UsualOptions, group, option
from ..evaluation.nulls.kinds import NULL_KINDS
from ..hardware import pick_device


@dataclass(frozen=True)
class Options:
    """Make pairs of models that differ, but in nothing that is looked for, and train a crosscoder
    over each as the run was trained, over the same texts. `filter` then says which share of its
    list is false. They are kept in the run's folder; the same command goes on with what is there.

    layer: a model against itself one layer on. rounded: against itself with its weights rounded to
    8 bits. fine-tune: against a LoRA adapter that is trained here, on what the model itself answers
    to prompts of the run's texts, until it is as far from it as the run's models are apart.
    Without --kinds, layer for models of two families, rounded and fine-tune for a model and its
    fine-tune."""

    run: Path = option(positional=True)
    """run folder"""

    kinds: list[str] = option([], choices=tuple(NULL_KINDS))
    """which nulls to make"""

    models: list[str] = option([])
    """models of your own that differ from the run's (--source) in nothing that is looked for, such
    as another seed or checkpoint of it: a null of each"""

    source: int = 0
    """which of the run's models stands against another: 0 is MODEL, 1 the first partner"""

    seed: int = 0
    """of a fine-tune and of the crosscoder's start"""

    steps: int | None = None
    """of training (as many as the run's)"""

    usual: UsualOptions = group(UsualOptions)


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    run_command("sparsify-crosscoder null", Options, make, argv)


def make(options: Options) -> dict[str, Any]:
    """Make the nulls of a run, and return where each is."""
    from ..evaluation.nulls.making import NullConfig, make_null, null_folder, nulls_of
    from ..runs.run import Run

    if options.steps is not None and options.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {options.steps}.")
    usual = options.usual
    run, device = Run.open(options.run, **usual.hub.access), pick_device(usual.device)
    kinds = options.kinds or ([] if options.models else nulls_of(run))
    if not kinds and not options.models:
        raise ValueError(
            f"No null goes with the models of '{options.run}' at places that are no layers; name a "
            "model of your own with --models."
        )
    made = {}
    for kind in [*kinds, *options.models]:
        config = NullConfig(kind, options.source, options.seed, options.steps)
        print(f"Null {config.name}: {NULL_KINDS.get(kind, kind)}, in {null_folder(run, config)}")
        made[config.name] = str(make_null(run, config, device).path)
    print(f"Done: `sparsify-crosscoder filter {options.run}` has q values now.")
    return {"run": str(options.run), "nulls": made}
