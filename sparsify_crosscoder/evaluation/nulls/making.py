"""Making a null of a run: the same texts, options and training over a pair without the difference.

    RUN/nulls/KIND/
        null.json     its settings
        texts.jsonl   the run's texts, with the answers that it read; of `fine-tune` without those
                      whose prompts it learns to answer
        own/          of `fine-tune` what the model answers to prompts of the texts
        partner/      of `rounded` the model, of `fine-tune` the adapter
        store/        the pairs, of a run with a store
        run/          a run folder like any other

A null that was stopped goes on where it was.
"""

from __future__ import annotations

import copy
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...crosscoders import Crosscoder
from ...files import atomic_write_json
from ...harvest.adapter_name import parts_of
from ...harvest.hookpoints import num_layers_of
from ...harvest.loading import load_config
from ...harvest.model_name import ModelName
from ...hashing import hash_text
from ...records import read_json
from ...runs.config import RunConfig
from ...runs.pairs import run_store
from ...runs.provenance import is_begun
from ...runs.run import Run
from ...runs.texts import text_options
from ...runs.train import train
from ...store.manifest import column_names
from ...training.run_folder import SCHEDULE
from .fine_tune import FineTune, relative_distance, save_fine_tune
from .kinds import FINE_TUNE, LAYER, NULL_KINDS, ROUNDED, kinds_for
from .own_answers import OwnAnswers, learnt, own_windows, write_texts
from .rounded_model import save_rounded

DISTANCE = 0.1
"""Of a fine-tune from its base, for models of which no distance is known."""

_DISTANCE_PAIRS = 8_192
_LAYER = re.compile(r"(.*?)(\d+)(\D*)")


@dataclass(frozen=True)
class NullConfig:
    """Which null is made, of which of a run's models."""

    kind: str
    """One of `NULL_KINDS`, or the name of a model that differs from the source's in nothing that is
    looked for."""

    source: int = 0
    seed: int = 0
    """Of a fine-tune, and of the crosscoder's start."""

    steps: int | None = None
    """Of training; as many as the run's if None."""

    @property
    def name(self) -> str:
        """Of its folder; models whose names end alike have different ones."""
        kind = self.kind
        if kind not in NULL_KINDS:
            kind = f"{Path(kind).name}-{hash_text(kind)[:8]}"
        parts = [kind, f"source{self.source}" * bool(self.source), f"seed{self.seed}"]
        return "-".join(part for part in parts if part)


def nulls_of(run: Run) -> tuple[str, ...]:
    """The kinds of null that go with a run; none where these need a layer and it reads another
    place."""
    kinds = kinds_for(run.crosscoder().sources)
    return () if LAYER in kinds and _LAYER.fullmatch(run.ends[0].hookpoint) is None else kinds


def null_folder(run: Run, config: NullConfig, place: Path | None = None) -> Path:
    """Where a null of a run is, or will be: in `place`, or else in the run's own folder."""
    return (run.path / "nulls" if place is None else place) / config.name


def made_nulls(run: Run) -> list[Run]:
    """The nulls of a run that are there and trained to the end, by their names."""
    found = sorted(run.path.glob("nulls/*/run/summary.json"))
    access = {
        "token": run.config.hf_token,
        "trust_remote_code": run.config.trust_remote_code,
    }
    return [Run.open(summary.parent, **access) for summary in found]


def make_null(run: Run, config: NullConfig, device: torch.device, place: Path | None = None) -> Run:
    """Harvest and train a null, see `null_folder`; what is there of it already is kept.

    Raises ValueError for a source that the run does not have, a kind that it cannot be, and where
    models or texts of the run have changed.
    """
    folder = null_folder(run, config, place)
    crosscoder = run.crosscoder()
    if not 0 <= config.source < len(crosscoder.sources):
        raise ValueError(
            f"A null of model {config.source} cannot be made: the run has models 0 to "
            f"{len(crosscoder.sources) - 1}."
        )
    options = _options(run, config, crosscoder, folder)
    _check_settings(config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    known = learnt(run).rows if config.kind == FINE_TUNE else set()
    rows = ({n: row[n] for n in ("messages", "text") if n in row} for row in map(dict, run.texts()))
    write_texts(folder / "texts.jsonl", (row for i, row in enumerate(rows) if i not in known))
    trained = folder / "run"
    if not (trained / "summary.json").is_file():
        partner = _partner(run, config, folder, device)
        options.partners = [partner.name]
        options.partner_revisions = [partner.revision] if partner.revision else []
        options.resume = is_begun(trained)
        train(options, device)
    return Run.open(
        trained, token=run.config.hf_token, trust_remote_code=run.config.trust_remote_code
    )


def _check_settings(config: NullConfig, folder: Path) -> None:
    """Keep the settings of a null; raises ValueError where its folder is of other ones."""
    file, settings = folder / "null.json", asdict(config)
    if not file.is_file():
        return atomic_write_json(file, settings)
    if read_json(file, dict, f"Delete '{folder}': the null is made again.") != settings:
        raise ValueError(
            f"'{folder}' holds a null of other settings (--steps); delete it to make it again."
        )


def _options(run: Run, config: NullConfig, crosscoder: Crosscoder, folder: Path) -> RunConfig:
    """Options of the null's training, but for its partner."""
    own, harvested = run.config, text_options(run.config)
    options: Any = copy.deepcopy(own)
    for name in ("chat_format", "ctx_len", "template_tokens", "exclude_tokens"):
        setattr(options, name, copy.copy(getattr(harvested, name)))
    plain = RunConfig(model="", dataset="")
    for name in ("split", "data_args", "text_column", "extra_datasets", "dataset_weights"):
        setattr(options, name, getattr(plain, name))
    for name in ("answers", "chat_template_from", "max_examples", "append", "pairs", "json"):
        setattr(options, name, getattr(plain, name))
    model, hookpoint = _model(run, config), run.ends[config.source].hookpoint
    options.dataset = str(folder / "texts.jsonl")
    options.model, options.revision = model.name, model.revision
    options.devices, options.layers = [], []
    options.hookpoints = [hookpoint, hookpoint]
    if config.kind == LAYER:
        options.hookpoints = [hookpoint, next_layer(hookpoint, num_layers_of(load_config(model)))]
    options.save_dir, options.run_name = str(folder), "run"
    options.trained_on, options.finetune, options.log_to_wandb = None, None, False
    options.init_seeds, options.order_seed = [config.seed], None
    store = run_store(own)
    options.cache = None if store is None else str(folder / "store")
    if store is not None:
        # The next tokens of one model at two places are the same: there is no KL to compare.
        with_kl = bool(column_names(store.manifest["parts"][0])) and config.kind != LAYER
        options.kl, options.dtype = "on" if with_kl else "off", store.dtype
    if "predicted_by" in crosscoder.fitted():
        options.sae = replace(options.sae, predict_by=crosscoder.fitted()["predicted_by"])
    if config.steps is not None:
        options.max_steps = config.steps
        options.lr_decay_steps = min(options.lr_decay_steps, config.steps // 3)
        for name in SCHEDULE:
            setattr(options, name, None)  # what fits so many steps
    return options


def next_layer(hookpoint: str, layers: int) -> str:
    """The same place one layer on: `layers.15` becomes `layers.16`; of the last one, one before."""
    found = _LAYER.fullmatch(hookpoint)
    if found is None:
        raise ValueError(
            f"The hookpoint '{hookpoint}' names no layer, so that there is no next one; choose "
            f"another kind of null than `{LAYER}`."
        )
    layer = int(found[2])
    return f"{found[1]}{layer + 1 if layer + 1 < layers else layer - 1}{found[3]}"


def _model(run: Run, config: NullConfig) -> ModelName:
    """The model of a null's source; of an adapter whose weights are to be changed its base."""
    name, revision, *_ = run.ends[config.source]
    model = ModelName(name, revision, run.config.hf_token, run.config.trust_remote_code)
    return parts_of(model).base if config.kind in (ROUNDED, FINE_TUNE) else model


class _Partner(NamedTuple):
    name: str
    revision: str | None = None


def _partner(run: Run, config: NullConfig, folder: Path, device: torch.device) -> _Partner:
    """What stands beside the source's model."""
    model, hookpoint = _model(run, config), run.ends[config.source].hookpoint
    if config.kind == LAYER:
        return _Partner(model.name, model.revision)
    if config.kind not in NULL_KINDS:
        return _Partner(config.kind)
    partner = folder / "partner"
    if config.kind == ROUNDED:
        save_rounded(model, partner)
        return _Partner(str(partner))
    if not partner.is_dir():
        windows = own_windows(run, OwnAnswers(model, config.source, folder, config.seed), device)
        how = FineTune(_distance(run), hookpoint, seed=config.seed)
        reached = save_fine_tune(model, windows, how, partner)
        told = {"reached": reached, "asked": how.distance, "seed": how.seed}
        atomic_write_json(folder / "fine_tune.json", told)
    revision = f"{model.revision}+" if model.revision else None
    return _Partner(f"{model.name}+{partner}", revision)


def _distance(run: Run) -> float:
    """How far apart the run's first two models are, where they share a basis."""
    if FINE_TUNE not in nulls_of(run):
        return DISTANCE
    first, second, *_ = run.pairs("cpu").sample(_DISTANCE_PAIRS)
    return relative_distance(second, first)
