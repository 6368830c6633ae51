"""The crosscoder, trained from the store."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..outcome import Cost, Outcome
from ..runner import Record
from ..stage import Context, NoOptions, Stage
from .harvest import LATER_OPTIONS, OF_HARVEST, Harvest, num_pairs

if TYPE_CHECKING:
    from sparsify_crosscoder.runs.config import RunConfig
    from sparsify_crosscoder.runs.summary import RunSummary

# Options that change nothing in what is trained, or that the audit sets.
_NOT_TRAINING = (
    *("cache", "json", "log_to_wandb", "wandb_log_frequency", "log_every", "resume", "run_name"),
    *("save_dir", "save_every", "device", "devices", "device_map", "hf_token", "trust_remote_code"),
)


class Train(Stage[NoOptions, "RunSummary"]):
    """Trains on the store, or goes on; a run that was given is described only."""

    name = "train"
    what = "the crosscoder"
    needs = ("harvest",)

    def inputs(self, ctx: Context) -> dict[str, Any]:
        if ctx.config.run is not None:
            return {"run": str(ctx.run.path)}
        left_out = {*_NOT_TRAINING, *OF_HARVEST, *LATER_OPTIONS, "partner_revisions", "kl"}
        left_out -= {"shuffle_seed"}
        options = ctx.training.to_dict()
        if options["order_seed"] is None:  # earlier versions did not have it
            left_out.add("order_seed")
        return {name: value for name, value in options.items() if name not in left_out}

    def estimate(self, ctx: Context) -> Cost:
        if ctx.config.run is not None:
            return Cost()
        return training_cost(ctx, ctx.training.max_steps)

    def run(self, ctx: Context, folder: Path) -> Outcome:
        from sparsify_crosscoder.crosscoders.checkpoints import WEIGHTS, own_crosscoders

        from ...delphi.crosscoder_cache import digest

        outputs = []
        if ctx.config.run is None:
            run = folder / "run"
            if not (run / "summary.json").exists():
                _train(_options(ctx, folder), ctx)
            weights = [run / name / WEIGHTS for name in own_crosscoders(run)]
            outputs = [run / "summary.json", *weights]
        summary = ctx.run.summary().to_dict()
        return Outcome({"summary": summary}, outputs, identity=digest(ctx.crosscoder))

    def output(self, ctx: Context, folder: Path, record: Record) -> RunSummary:
        from sparsify_crosscoder.runs.summary import RunSummary

        return RunSummary.from_dict(record.result["summary"])


def training_cost(ctx: Context, steps: int | None) -> Cost:
    """Of so many steps, or of as many as there are pairs for."""
    options, (latents, width) = ctx.training, dictionary_size(ctx)
    steps = steps or num_pairs(ctx) * options.epochs // options.pairs_per_step
    # One product with every latent; the rest follows the few that are active.
    product = ctx.quantities.seconds(2 * latents * width * options.pairs_per_step)
    adam = ctx.quantities.seconds(0, 2 * latents * width * 28)
    return Cost(steps * (2 * product + adam), {"steps": steps, "latents": latents})


def dictionary_size(ctx: Context) -> tuple[int, int]:
    """Latents and width of the dictionary."""
    if ctx.trained:
        return ctx.crosscoder.num_latents, ctx.crosscoder.d_in
    widths = ctx.quantities.widths
    return ctx.training.sae.resolve_num_latents(widths), sum(widths)


def _options(ctx: Context, folder: Path) -> RunConfig:
    """The options of training from the store, into `<folder>/run`."""
    from sparsify_crosscoder.store.manifest import read_manifest

    options, store = copy.deepcopy(ctx.training), ctx.output(Harvest)
    manifest = read_manifest(store)
    if manifest is None:
        raise ValueError(f"'{store}' holds no activation store; harvest it first.")
    options.dataset, options.cache = str(store), None
    options.pairs, options.extra_datasets, options.dataset_weights = None, [], []
    options.hookpoints = [source["hookpoint"] for source in manifest["sources"]]
    options.layers = []
    for name, value in LATER_OPTIONS.items():  # the store says how its texts were read
        setattr(options, name, value)
    options.save_dir, options.run_name = str(folder), "run"
    options.json = None
    options.resume = (folder / "run" / "config.json").exists()
    return options


def _train(options: RunConfig, ctx: Context) -> None:
    from sparsify_crosscoder.runs.train import prepare_training

    training = prepare_training(options, ctx.device)
    print(training.announcement())
    print(training.fit().text(Path(options.save_dir) / "run"))
