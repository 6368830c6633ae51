"""`sparsify-crosscoder harvest MODEL_A DATASET --partners MODEL_B --cache STORE`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from ..endings import UsageError, take_debug
from ..runs.options import parse_run_config
from ..runs.pairs import harvest_run
from ..surroundings import command_surroundings
from .processes import on_device, rank_ending

_HARVEST_GOES_ON = "the same command goes on with what is not in the store yet"


@command_surroundings()
def main(argv: Sequence[str]) -> None:
    """Fill the activation store named by --cache, and report on alignment and harvest."""
    argv, debug = take_debug(argv)
    with rank_ending(_HARVEST_GOES_ON, debug):
        config = parse_run_config(argv)
        if config.cache is None:
            raise UsageError("Name the store's folder with --cache.")

        def job(device: torch.device) -> dict[str, Any]:
            harvested = harvest_run(config, device).to_dict()
            print(json.dumps(harvested, indent=2))
            return harvested

        on_device(job, config)
