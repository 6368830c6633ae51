"""What the stages of an audit share: folders, options, and what is loaded once and when needed."""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparsify_crosscoder.crosscoders import Crosscoder
from sparsify_crosscoder.evaluation.false_exclusives import FilterConfig
from sparsify_crosscoder.hardware import pick_device
from sparsify_crosscoder.harvest.model_identity import short_names
from sparsify_crosscoder.harvest.sources import load_language_model
from sparsify_crosscoder.runs.config import RunConfig, load_run_config
from sparsify_crosscoder.runs.models import End, check_model, ends_of
from sparsify_crosscoder.runs.options import parse_run_config
from sparsify_crosscoder.store.manifest import is_store, read_manifest

from ..clients.judge import NO_JUDGE, JudgeConfig, make_client
from ..commands.judge_options import judge_config
from ..delphi.crosscoder_cache import CacheOptions, CrosscoderLatentCache
from ..delphi.run_text import RunText
from ..explaining.autointerp import Autointerp, JudgingConfig
from .stages import Record

if TYPE_CHECKING:
    from delphi.clients import Client

RAW = "latents"
_THRESHOLDS = ("predictability", "shadow", "min_firings")


class Workspace:
    """An audit's folder and options; everything else is made from them on first use."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.out = Path(args.out).resolve()
        self.records: dict[str, Record] = {}

    def folder(self, stage: str) -> Path:
        return self.out / stage

    @cached_property
    def device(self) -> torch.device:
        device = None if self.args.run else self.harvest_options.device
        return pick_device(device)

    # Harvest and training

    @cached_property
    def harvest_options(self) -> RunConfig:
        """The options of training with the texts that are harvested.

        The process exits with 2 where they do not make sense.
        """
        model, partner = self.args.models
        argv = [model, str(self.args.dataset), "--partners", partner, *self.args.train]
        if self.args.hf_token is not None:
            argv += ["--hf_token", self.args.hf_token]
        if self.args.trust_remote_code:
            argv += ["--trust_remote_code"]
        if not is_store(self.args.dataset):
            argv += ["--cache", str(self.folder("harvest") / "store")]
        return parse_run_config(argv)

    @property
    def store(self) -> Path:
        """The store that is trained from: the audit's own, or the one given for a dataset."""
        options = self.harvest_options
        return Path(options.cache or options.dataset).resolve()

    def train_options(self, folder: Path) -> RunConfig:
        """The options of training from the store, into `<folder>/run`."""
        options = copy.deepcopy(self.harvest_options)
        manifest = read_manifest(self.store)
        if manifest is None:
            raise ValueError(f"'{self.store}' holds no activation store; harvest it first.")
        options.dataset, options.cache = str(self.store), None
        options.pairs, options.extra_datasets, options.dataset_weights = None, [], []
        options.hookpoints = [source["hookpoint"] for source in manifest["sources"]]
        options.layers = []
        options.save_dir, options.run_name = str(folder), "run"
        options.json = None
        return options

    @property
    def run(self) -> Path:
        """The trained run's folder."""
        return self.args.run.resolve() if self.args.run else self.folder("train") / "run"

    @cached_property
    def run_options(self) -> RunConfig:
        return load_run_config(
            self.run, self.args.hf_token, trust_remote_code=self.args.trust_remote_code
        )

    @cached_property
    def crosscoder(self) -> Crosscoder:
        return Crosscoder.load_one(self.run, None, self.device)

    @cached_property
    def filter_config(self) -> FilterConfig:
        given = {name: getattr(self.args, name) for name in _THRESHOLDS}
        return FilterConfig(
            pairs=self.args.filter_pairs,
            outlier_multiple=self.run_options.outlier_multiple,
            **{name: value for name, value in given.items() if value is not None},
        )

    # Cache and judge

    @cached_property
    def text(self) -> RunText:
        return RunText.of_run(
            self.run,
            self.device,
            self.args.hf_token,
            trust_remote_code=self.args.trust_remote_code,
        )

    @cached_property
    def cache(self) -> CrosscoderLatentCache:
        return CrosscoderLatentCache(
            self.crosscoder,
            self.text,
            self.folder("cache") / RAW,
            source=self.args.source,
            options=CacheOptions(
                ctx_len=self.args.cache_ctx_len,
                windows=self.args.cache_windows,
                outlier_multiple=self.run_options.outlier_multiple,
            ),
        )

    @cached_property
    def judging_config(self) -> JudgingConfig:
        return JudgingConfig()

    @cached_property
    def judge(self) -> JudgeConfig:
        """Who judges, on the audit's own device."""
        return replace(judge_config(self.args), device=self.device)

    @property
    def judged(self) -> bool:
        """Whether there is a judge to ask."""
        return self.args.judge != NO_JUDGE

    @cached_property
    def client(self) -> Client:
        """The judge."""
        client = make_client(self.judge, self.out)
        assert client is not None
        return client

    def autointerp(self) -> Autointerp:
        """Explanations in the folder of `explain`, scores in that of `score`."""
        return Autointerp(
            self.cache,
            self.folder("explain"),
            self.judging_config,
            run=self.run,
            judge=self.args.judge,
            scores=self.folder("score"),
        )

    # Steering

    @cached_property
    def ends(self) -> list[End]:
        return ends_of(self.run_options, self.crosscoder.sources)

    def language_model(self, source: int) -> tuple[Any, Any]:
        """One of the models with its head, and its tokenizer."""
        options = self.run_options
        end = self.ends[source]
        loaded = load_language_model(
            end.model,
            device=self.device,
            dtype=options.model_dtype,
            revision=end.revision,
            token=options.hf_token,
            trust_remote_code=options.trust_remote_code,
        )
        check_model(end.model, end.revision, end.checkpoint)
        return loaded

    def model_name(self, source: int) -> str:
        """What one of the models is called, unlike the other."""
        return short_names([end.model for end in self.ends])[source]
