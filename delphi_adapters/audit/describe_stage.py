"""What latents are about without a judge, whoever judges later: describe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sparsify_crosscoder.evaluation.false_exclusives import called_exclusive

from ..explaining.descriptions import Descriptions, describe
from .directions import shared_nulls
from .explain_stages import choosing_inputs, chosen_latents
from .stages import Outcome
from .workspace import Workspace


def describe_inputs(work: Workspace) -> dict[str, Any]:
    return {**choosing_inputs(work), "nulls": work.args.nulls}


def describe_latents(work: Workspace, folder: Path) -> Outcome:
    """Describe the latents that are to be explained, and the shared ones to compare them with."""
    chosen = chosen_latents(work)
    if work.args.latents == ["exclusive"] and not len(torch.cat(called_exclusive(work.crosscoder))):
        print(
            f"No latent of this crosscoder is exclusive: the {len(chosen)} that lean furthest "
            "towards one model are looked at."
        )
    shared = [one for source in range(2) for one in shared_nulls(work, source)]
    described = describe(work.cache, work.crosscoder, [*chosen, *shared], work.language_model)
    for source, why in described.left_out.items():
        print(f"No promoted tokens of {work.ends[source].model}: {why}.")
    return Outcome(
        {
            "latents": len(described.latents),
            "words": described.corpus_words,
            "left_out": {work.ends[s].model: why for s, why in described.left_out.items()},
        },
        [described.save(folder)],
    )


def load_descriptions(work: Workspace) -> Descriptions:
    """What the stage wrote."""
    return Descriptions.load(work.folder("describe"))
