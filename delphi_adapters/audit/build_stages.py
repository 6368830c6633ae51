"""From two models to a crosscoder that was filtered: harvest, train, filter, null."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import torch

from sparsify_crosscoder.commands.filter import judge, show
from sparsify_crosscoder.crosscoders import Crosscoder
from sparsify_crosscoder.crosscoders.checkpoints import WEIGHTS, own_crosscoders
from sparsify_crosscoder.evaluation.false_exclusives import called_exclusive
from sparsify_crosscoder.evaluation.top import source_labels
from sparsify_crosscoder.files import atomic_write_json, hash_file
from sparsify_crosscoder.harvest.model_identity import checkpoint_digest
from sparsify_crosscoder.records import read_json
from sparsify_crosscoder.registry import get_architecture
from sparsify_crosscoder.runs.config import RunConfig
from sparsify_crosscoder.runs.pairs import harvest_run, load_pairs, load_training_data
from sparsify_crosscoder.runs.train import prepare_training
from sparsify_crosscoder.store.manifest import is_store, read_manifest
from sparsify_crosscoder.store.store import ActivationStore
from sparsify_crosscoder.store.stream import ActivationStream, SelectedSources
from sparsify_crosscoder.training.data import PairedData
from sparsify_crosscoder.training.run_folder import SCHEDULE
from sparsify_crosscoder.training.trainer import make_trainer

from ..delphi.crosscoder_cache import digest
from .stages import Outcome
from .workspace import Workspace

# Options that change nothing in what is trained, or that the audit sets.
_NOT_TRAINING = (
    *("cache", "json", "log_to_wandb", "wandb_log_frequency", "log_every", "resume", "run_name"),
    *("save_dir", "save_every", "device", "devices", "device_map", "hf_token", "trust_remote_code"),
)
_OF_HARVEST = (
    *("model", "partners", "dataset", "split", "data_args", "text_column", "extra_datasets"),
    *("dataset_weights", "max_examples", "shuffle_seed", "ctx_len", "chat_format", "pairs"),
    *("exclude_tokens", "hookpoints", "layers", "revision", "load_in_8bit", "model_dtype"),
    *("dtype", "shard_pairs", "batch_size"),
)


def harvest_inputs(work: Workspace) -> dict[str, Any]:
    if work.args.run:
        return {"run": str(work.run)}
    options = work.harvest_options.to_dict()
    inputs = {name: options[name] for name in _OF_HARVEST}
    if options["partner_revisions"]:
        inputs["partner_revisions"] = options["partner_revisions"]
    manifest = read_manifest(work.store)
    folders = [name for name in work.args.models if os.path.isdir(name)]
    # Of a hub's model nothing is known before it is here; earlier versions kept no digests.
    if folders and (manifest is None or "checkpoint" in manifest["sources"][0]):
        inputs["checkpoints"] = [checkpoint_digest(name) for name in folders]
    return inputs


def harvest(work: Workspace, folder: Path) -> Outcome:
    """Fill the store, unless one was given or a run is trained already."""
    if work.args.run:
        return Outcome({"given": str(work.run)}, identity={"run": str(work.run)})
    options = work.harvest_options
    if is_store(options.dataset):
        store = ActivationStore.open(options.dataset)
        result: dict[str, Any] = {"given": str(work.store), "pairs": len(store)}
        outputs = []
    else:
        result = harvest_run(options, work.device).to_dict()
        store = ActivationStore.open(work.store)
        outputs = store.files()
    result["bytes"] = store.num_bytes
    # The manifest has every shard's checksum.
    return Outcome(result, outputs, identity=hash_file(store.path / "manifest.json"))


def train_inputs(work: Workspace) -> dict[str, Any]:
    if work.args.run:
        return {"run": str(work.run)}
    options = work.harvest_options.to_dict()
    left_out = {*_NOT_TRAINING, *_OF_HARVEST, "partner_revisions"} - {"shuffle_seed"}
    return {name: value for name, value in options.items() if name not in left_out}


def train_crosscoder(work: Workspace, folder: Path) -> Outcome:
    """Train on the store, or go on; a run that was given is described only."""
    if not work.args.run:
        options = work.train_options(folder)
        run = folder / "run"
        if not (run / "summary.json").exists():
            options.resume = (run / "config.json").exists()
            training = prepare_training(options, work.device)
            print(training.announcement())
            print(training.fit().text(run))
    remedy = "Restore it." if work.args.run else "Delete it, and the run is finished again."
    summary = read_json(work.run / "summary.json", dict, remedy)
    outputs = []
    if not work.args.run:
        weights = [work.run / name / WEIGHTS for name in own_crosscoders(work.run)]
        outputs = [work.run / "summary.json", *weights]
    return Outcome({"summary": summary}, outputs, identity=digest(work.crosscoder))


def filter_inputs(work: Workspace) -> dict[str, Any]:
    names = ("filter_pairs", "predictability", "shadow", "min_firings")
    return {name: getattr(work.args, name) for name in names}


def filter_latents(work: Workspace, folder: Path) -> Outcome:
    """Judge every latent that is exclusive by its norm."""
    pairs = load_pairs(work.run_options, work.device)
    result = judge(work.crosscoder, pairs, work.filter_config)
    atomic_write_json(folder / "filter.json", result)
    show(result, source_labels(work.crosscoder))
    return Outcome(
        {"verdicts": result["verdicts"], "clusters": len(result["clusters"])},
        [folder / "filter.json"],
    )


def null_inputs(work: Workspace) -> dict[str, Any]:
    return filter_inputs(work) | {"steps": work.args.null_steps}


def null(work: Workspace, folder: Path) -> Outcome:
    """Train the first model against itself as the run was trained, and filter what comes of it."""
    if work.args.null_steps == 0:
        return Outcome({"left_out": "--null_steps 0"}, identity=None)
    options = copy.deepcopy(work.run_options)
    options.save_dir, options.run_name, options.resume = str(folder), "run", False
    options.log_to_wandb, options.finetune = False, None
    if work.args.null_steps is not None:
        options.max_steps = work.args.null_steps
        options.lr_decay_steps = min(options.lr_decay_steps, work.args.null_steps // 3)
        for name in SCHEDULE:
            setattr(options, name, None)  # what fits so many steps
    run = folder / "run"
    if not (run / "summary.json").exists():
        _train_on_itself(options, run, work.device)
    crosscoder = Crosscoder.load_one(run, None, work.device)
    pairs = SelectedSources(load_pairs(work.run_options, work.device), [0, 0])
    found = judge(crosscoder, pairs, work.filter_config)
    atomic_write_json(folder / "filter.json", found)
    exclusive = sum(len(some) for some in called_exclusive(crosscoder))
    kept = sum(counts["kept"] for counts in found["verdicts"])
    print(f"{source_labels(work.crosscoder)[0]} against itself: {kept} of {exclusive} kept")
    return Outcome(
        {"verdicts": found["verdicts"], "exclusive": exclusive, "kept": kept},
        [folder / "filter.json", run / "summary.json"],
        identity=hash_file(folder / "filter.json"),
    )


def _train_on_itself(options: RunConfig, run: Path, device: torch.device) -> None:
    architecture = get_architecture(options.arch)
    data = load_training_data(options, device)

    def doubled(stream: ActivationStream | None) -> ActivationStream | None:
        return None if stream is None else SelectedSources(stream, [0, 0])

    train_pairs = doubled(data.train)
    assert train_pairs is not None
    first = data.sources[0]
    pairs = PairedData(train_pairs, doubled(data.held_out), [first, dict(first)], data.facts)
    trainer = make_trainer(architecture, options, pairs, device)
    if (run / "config.json").exists():
        options.resume = True
        trainer.folder.check_resumable(options)
        if trainer.folder.newest_checkpoint() is not None:
            trainer.load_state(str(run))
    trainer.fit()
