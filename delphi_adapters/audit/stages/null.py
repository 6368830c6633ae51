"""The filter where nothing differs: the first model against itself."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.hashing import hash_file

from ..outcome import Cost, Outcome
from ..runner import Record
from ..stage import TEXTS, Context, Stage
from .filter import FILE, FilterOptions
from .train import training_cost

if TYPE_CHECKING:
    import torch

    from sparsify_crosscoder.runs.config import RunConfig
    from sparsify_crosscoder.store.stream import ActivationStream


@dataclass
class NullOptions:
    """How long it is trained."""

    null_steps: int | None = None
    """steps to train MODEL_A against itself, for comparison; 0: not (those of training)"""

    def __post_init__(self):
        if self.null_steps is not None and self.null_steps < 0:
            raise ValueError("--null_steps must not be negative; 0 leaves the comparison out.")


class NullFound(NamedTuple):
    """What is found where nothing is to be found."""

    kept: int
    """Latents that the filter keeps."""

    exclusive: int
    """Latents that are exclusive by their norm."""


class Null(Stage[NullOptions, "NullFound | None"]):
    """Trains the first model against itself as the run was trained, and filters what comes of it.

    Gives None where it was left out.
    """

    name = "null"
    what = "the same of a model against itself, where nothing differs"
    needs = ("harvest", "train")
    after = ("filter",)
    Options = NullOptions
    group = TEXTS

    def inputs(self, ctx: Context) -> dict[str, Any]:
        return asdict(ctx.options(FilterOptions)) | {"steps": self.options.null_steps}

    def estimate(self, ctx: Context) -> Cost:
        if self.options.null_steps == 0:
            return Cost()
        return training_cost(ctx, self.options.null_steps or ctx.training.max_steps)

    def run(self, ctx: Context, folder: Path) -> Outcome:
        from sparsify_crosscoder.crosscoders import Crosscoder
        from sparsify_crosscoder.evaluation.false_exclusives import called_exclusive
        from sparsify_crosscoder.evaluation.filter import filter_crosscoder
        from sparsify_crosscoder.evaluation.top import source_labels
        from sparsify_crosscoder.store.stream import SelectedSources

        if self.options.null_steps == 0:
            return Outcome({"left_out": "--null_steps 0"})
        run = folder / "run"
        if not (run / "summary.json").exists():
            _train_on_itself(self._training(ctx, folder), run, ctx.device)
        crosscoder = Crosscoder.load_one(run, None, ctx.device)
        pairs = SelectedSources(ctx.run.pairs(ctx.device), [0, 0])
        config = ctx.options(FilterOptions).config(ctx.run.config.outlier_multiple)
        found = filter_crosscoder(crosscoder, pairs, config).to_dict()
        atomic_write_json(folder / FILE, found)
        exclusive = sum(len(some) for some in called_exclusive(crosscoder))
        kept = sum(counts["kept"] for counts in found["verdicts"])
        print(f"{source_labels(ctx.crosscoder)[0]} against itself: {kept} of {exclusive} kept")
        return Outcome(
            {"verdicts": found["verdicts"], "exclusive": exclusive, "kept": kept},
            [folder / FILE, run / "summary.json"],
            identity=hash_file(folder / FILE),
        )

    def output(self, ctx: Context, folder: Path, record: Record) -> NullFound | None:
        found = record.result
        return NullFound(found["kept"], found["exclusive"]) if "kept" in found else None

    def _training(self, ctx: Context, folder: Path) -> RunConfig:
        from sparsify_crosscoder.training.run_folder import SCHEDULE

        options, steps = copy.deepcopy(ctx.run.config), self.options.null_steps
        options.save_dir, options.run_name, options.resume = str(folder), "run", False
        options.log_to_wandb, options.finetune = False, None
        if steps is not None:
            options.max_steps = steps
            options.lr_decay_steps = min(options.lr_decay_steps, steps // 3)
            for name in SCHEDULE:
                setattr(options, name, None)  # what fits so many steps
        return options


def _train_on_itself(options: RunConfig, run: Path, device: torch.device) -> None:
    from sparsify_crosscoder.registry import get_architecture
    from sparsify_crosscoder.runs.pairs import load_training_data
    from sparsify_crosscoder.store.stream import SelectedSources
    from sparsify_crosscoder.training.data import PairedData
    from sparsify_crosscoder.training.trainer import make_trainer

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
