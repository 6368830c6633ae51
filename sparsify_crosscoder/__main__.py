"""`sparsify-crosscoder SUBCOMMAND`, the same as `python -m sparsify_crosscoder SUBCOMMAND`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .command_line import dispatch
from .registry import refuse_unknown_architecture

_HERE = "sparsify_crosscoder"
_COMMANDS = f"{_HERE}.commands"
COMMANDS = {
    "train": (
        f"{_COMMANDS}.train",
        "main",
        "train a crosscoder: the same as `sparsify ... --arch NAME`",
    ),
    "harvest": (
        f"{_COMMANDS}.harvest",
        "main",
        "fill an activation store and report on the alignment",
    ),
    "baselines": (
        f"{_COMMANDS}.baselines",
        "main",
        "what the simplest methods see of two models, without training",
    ),
    "store": (
        f"{_COMMANDS}.store",
        "main",
        "say what a store holds, check it, join several",
    ),
    "top": (f"{_COMMANDS}.top", "main", "show where the latents of a run fire most"),
    "filter": (
        f"{_COMMANDS}.filter",
        "main",
        "drop exclusive latents that all models have",
    ),
    "null": (
        f"{_COMMANDS}.null",
        "main",
        "train where nothing is to be found: error rates for filter",
    ),
    "stability": (
        f"{_COMMANDS}.stability",
        "main",
        "differences that several runs find",
    ),
    "plant": (
        f"{_COMMANDS}.plant",
        "main",
        "plant known differences, and see which are found",
    ),
    "stitch": (
        f"{_COMMANDS}.stitch",
        "main",
        "fit affine maps between the models of a run",
    ),
    "steer": (
        f"{_COMMANDS}.steer",
        "main",
        "push a model with latents or a vector, and measure it",
    ),
    "graft": (
        f"{_COMMANDS}.graft",
        "main",
        "put the reconstruction in place of the activation",
    ),
    "patch": (
        f"{_COMMANDS}.patch",
        "main",
        "say how much of the models' divergence latents restore",
    ),
    "equivalence": (
        f"{_COMMANDS}.equivalence",
        "main",
        "say whether shared latents do the same in both models",
    ),
    "persona": (
        f"{_COMMANDS}.persona",
        "main",
        "find the vector of a trait in a model",
    ),
    "transfer": (
        f"{_COMMANDS}.transfer",
        "main",
        "carry a vector to the other model by shared latents",
    ),
    "export": (
        f"{_COMMANDS}.export",
        "main",
        "write one model's half as other libraries read it",
    ),
    "import": (
        f"{_COMMANDS}.import_run",
        "main",
        "make a run of a published crosscoder",
    ),
    "push": (f"{_COMMANDS}.push", "main", "upload a run to the hub, with a model card"),
    "toy": (f"{_COMMANDS}.toy", "main", "compare architectures on known concepts"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a subcommand; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] in (["train"], ["harvest"]):
        refuse_unknown_architecture(argv)
    dispatch("sparsify-crosscoder", COMMANDS, argv)


if __name__ == "__main__":
    main()
