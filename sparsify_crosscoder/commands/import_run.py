"""`sparsify-crosscoder import FOLDER RUN`: a published crosscoder becomes a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..command_line import run_command
from ..command_options import HubOptions, group, option


@dataclass(frozen=True)
class Options:
    """Make a run of a crosscoder of dictionary_learning (CrossCoder or BatchTopKCrossCoder), which
    top, filter and steer then read as one that was trained here. Its models read the
    texts of --dataset from now on; how well it reconstructs them is measured at once."""

    folder: Path = option(positional=True)
    """folder with config.json and model.safetensors or ae.pt, as downloaded from the hub"""

    run: Path = option(positional=True)
    """new run folder to write"""

    models: list[str] = option()
    """models that it reads, in its order"""

    hookpoints: list[str] = option()
    """place in each model, in order, such as layers.13: the module whose output it reads"""

    dataset: str = option()
    """dataset, text file or activation store of these models"""

    split: str = "train"
    """split of the dataset"""

    text_column: str = "text"
    """column with the texts"""

    ctx_len: int = 1024
    """most tokens of a window of text"""

    pairs: int | None = None
    """read only as many texts as give so many pairs (all)"""

    cache: str | None = None
    """folder of an activation store to harvest the texts into"""

    device: str | None = None
    """device to run on"""

    hub: HubOptions = group(HubOptions)

    json: Path | None = None
    """also write what was measured to this file"""


def main(argv: Sequence[str]) -> None:
    """Run the command; the process exits with 0, 1 (failed) or 2 (wrong use)."""
    run_command("sparsify-crosscoder import", Options, show, argv)


def show(options: Options) -> dict[str, Any]:
    """Import, say what it is and how well it fits, and return it."""
    from ..exports.importing import import_config, import_run

    config = import_config(
        model=options.models[0],
        partners=options.models[1:],
        hookpoints=options.hookpoints,
        dataset=options.dataset,
        split=options.split,
        text_column=options.text_column,
        ctx_len=options.ctx_len,
        pairs=options.pairs,
        cache=options.cache,
        device=options.device,
        hf_token=options.hub.hf_token,
        trust_remote_code=options.hub.trust_remote_code,
    )
    imported = import_run(options.folder, options.run, config, options.device)
    print(imported.text())
    return imported.to_dict()
