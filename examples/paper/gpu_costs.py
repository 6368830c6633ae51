"""Bytes, operations and hours of what runs on the models' side of an audit, by counting."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from benchmark_tables import find
from public_facts import GPU, MODELS, Diff, Model
from step_estimates import count_work, expected_bytes, shares
from step_settings import Setting

from delphi_adapters.delphi.latent_cache import CacheLayout
from delphi_adapters.judging.rubrics import Rubric
from sparsify_crosscoder.crosscoders import Crosscoder
from sparsify_crosscoder.interventions.generation import PROMPTS
from sparsify_crosscoder.registry import get_architecture
from sparsify_crosscoder.runs.config import RunConfig
from sparsify_crosscoder.store.shards import bytes_per_pair

MEASURED_STEP = "576+640, M=16,384, batch 1,024, k=64"  # in training_step.md
HARVEST_CLAIM = "harvest to forwards alone"  # in harvest.md
HALF_DEAD = ", AuxK, half dead"


class Assumed(NamedTuple):
    """What was not measured by us, and can be set on the command line."""

    gpu: GPU
    forward_share: float = 0.4
    """Of a GPU's bf16 peak that the models' forward passes reach."""

    tokens_per_second: float = 1000.0
    """That one GPU generates with one of the models, the rows of a batch together."""


def models_of(run: RunConfig) -> list[Model]:
    """Sizes of the run's models. Raises ValueError for one that is not in the table."""
    names = [run.model, *run.partners]
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        raise ValueError(f"Sizes of {', '.join(unknown)} are not known; add them to MODELS.")
    return [MODELS[name] for name in names]


def layers_read(run: RunConfig) -> list[int]:
    """How many layers of each model run: a hookpoint's own and all before it."""
    return [int(hookpoint.rpartition(".")[2]) + 1 for hookpoint in run.hookpoints]


def tokens_per_pair(diff: Diff) -> float:
    """Tokens of a model for each aligned pair, prose and chat half and half, as measured."""

    def ratio(kind: str) -> float:
        place = "alignment.md", diff.tokenizers, kind
        return find(*place, column="tokens") / find(*place, column="pairs")

    return (ratio("English prose") + ratio("chat")) / 2


def data_sizes(run: RunConfig, tokens_each: float) -> dict[str, float]:
    """Pairs, tokens and bytes of the store."""
    assert run.pairs is not None and run.max_steps is not None
    widths = [model.width for model in models_of(run)]
    seen = run.max_steps * run.pairs_per_step
    return {
        "pairs": run.pairs,
        "tokens_per_model": run.pairs * tokens_each,
        "pairs_trained_on": seen,
        "epochs": seen / run.pairs,
        "store_bytes_bfloat16": run.pairs * bytes_per_pair(widths, "bfloat16"),
        "store_bytes_int8": run.pairs * bytes_per_pair(widths, "int8"),
    }


def forward_flops(run: RunConfig, tokens: float) -> float:
    """Of both models' layers up to the hookpoints, in texts of `ctx_len` tokens, which is most."""
    depths = zip(models_of(run), layers_read(run), strict=True)
    return tokens * sum(model.flops_per_token(layers, run.ctx_len) for model, layers in depths)


def harvest(run: RunConfig, tokens: float, assumed: Assumed) -> dict[str, float]:
    """Operations and GPU-hours of both models up to their hookpoints."""
    flops = forward_flops(run, tokens)
    share = find("harvest.md", "Activation stores, measured", HARVEST_CLAIM, column="found")
    seconds = flops / (assumed.gpu.bf16_flops * assumed.forward_share)
    return {
        "flops": flops,
        "model_bytes": 2 * sum(model.parameters for model in models_of(run)),
        "harvest_to_forwards": share,
        "hours": seconds / share / 3600,
    }


def crosscoder_of(run: RunConfig, k: int | None = None) -> Crosscoder:
    """The run's crosscoder without its weights, on the meta device."""
    widths = [model.width for model in models_of(run)]
    coder_class = get_architecture(run.arch).coder_class
    return coder_class(widths, replace(run.sae, k=k or run.sae.k), "meta")


def training(run: RunConfig, gpu: GPU) -> dict[str, Any]:
    """A crosscoder's sizes, memory and time.

    `steps` has two kinds: with no latent dead, and with half the dictionary dead in the auxiliary
    loss. For each, milliseconds that a GPU cannot go below by what the step computes and moves,
    the share of such a floor that our step reached on a CPU, and milliseconds and hours with the
    GPU at that share of its own floor, and what is then read from a store in bfloat16. While k
    falls, it counts by its mean.
    """
    assert run.initial_k is not None and run.k_decay_steps is not None
    assert run.max_steps is not None
    crosscoder = crosscoder_of(run)
    weights = sum(weight.numel() for weight in crosscoder.encoder.weights)
    parameters = sum(parameter.numel() for parameter in crosscoder.parameters())
    early, late = run.k_decay_steps, run.max_steps - run.k_decay_steps
    k_while_falling = (run.initial_k + run.sae.k) // 2
    falling = _floor_ms(run, gpu, k_while_falling, auxk=False)
    widths = [model.width for model in models_of(run)]
    step_bytes = run.pairs_per_step * bytes_per_pair(widths, "bfloat16")
    steps = {}
    for kind, suffix in (("no latent dead", ""), ("half the dictionary dead", HALF_DEAD)):
        floor = _floor_ms(run, gpu, run.sae.k, auxk=bool(suffix))
        measured = MEASURED_STEP + suffix, "ours bf16", "all"
        reached = find("training_step.md", *measured, column="floor ms") / find(
            "training_step.md", *measured, column="ms"
        )
        steps[kind] = {
            "floor_ms": floor,
            "reached_on_cpu": reached,
            "ms": floor / reached,
            "least_hours": (early * falling + late * floor) / 3.6e6,
            "hours": (early * falling + late * floor) / reached / 3.6e6,
            "bytes_per_second": step_bytes / (floor / reached / 1000),
        }
    memory = {
        f"k = {run.initial_k:,}, no latent dead": _memory(run, weights, run.initial_k, False),
        f"k = {run.sae.k:,}, half the dictionary dead": _memory(run, weights, run.sae.k, True),
    }
    return {
        "partition": {b.name: b.stop - b.start for b in crosscoder.partition.blocks},
        "parameters": parameters,
        "weights_of_the_encoder": weights,
        "checkpoint_bytes": 4 * parameters,
        "optimizer_bytes": 8 * parameters,
        "memory": memory,
        "gpu_memory_bytes": gpu.memory_bytes,
        "peak_bytes": max(parts["peak"] for parts in memory.values()),
        "steps": steps,
    }


def latent_cache(
    run: RunConfig, crosscoder: Crosscoder, tokens: float, assumed: Assumed
) -> dict[str, float]:
    """GPU-hours to encode all pairs, core-hours to write what is active, bytes of the cache.

    Activations are read from the store, so that the models do not run.
    """
    assert run.pairs is not None
    weights = sum(weight.numel() for weight in crosscoder.encoder.weights)
    flops = 2.0 * weights * run.pairs
    place = "latent_cache.md", "Without encoding, 16,384 tokens", f"{run.sae.num_latents:,}", "ours"
    rate = find(*place, column="tokens/s")
    return {
        "flops": flops,
        "hours": flops / (assumed.gpu.bf16_flops * assumed.forward_share) / 3600,
        "tokens_per_second_of_a_core": rate,
        "core_hours": tokens / rate / 3600,
        "bytes": cache_bytes(tokens, run.pairs * run.sae.k, run.sae.num_latents),
        "bytes_while_writing": part_bytes(tokens, run.pairs, run.pairs * run.sae.k),
    }


def cache_bytes(tokens: float, entries: float, num_latents: int) -> float:
    """Of delphi's files, which have all tokens in every split.

    An entry is a location (row, token of the row, latent of the split) in uint16, or uint32 where
    one is larger, and an activation in float16. Headers and statistics are left out.
    """
    small = max(tokens / CacheLayout.ctx_len, num_latents / CacheLayout.n_splits) < 2**16
    return entries * (3 * (2 if small else 4) + 2) + CacheLayout.n_splits * 8 * tokens


def part_bytes(tokens: float, pairs: float, entries: float) -> float:
    """Of the parts that delphi's files are made from, which are there until these are whole."""
    return 12 * entries + 4 * tokens + 12 * pairs


def stitching(run: RunConfig, pairs: int, tokens_each: float, assumed: Assumed) -> dict[str, float]:
    """Operations and GPU-hours: both models over the pairs, and their joint second moments.

    The moments are in float64, counted at half the rate of float32; 200 steps of training and a
    solution of the normal equations are small beside them.
    """
    joint = sum(model.width for model in models_of(run))
    forwards, moments = forward_flops(run, pairs * tokens_each), 2.0 * pairs * joint**2
    seconds = forwards / (assumed.gpu.bf16_flops * assumed.forward_share)
    seconds += moments / (assumed.gpu.fp32_flops / 2)
    return {
        "flops": forwards + moments,
        "hours": seconds / 3600,
        "activation_bytes": pairs * bytes_per_pair([m.width for m in models_of(run)], "bfloat16"),
    }


def features_scored(audit: argparse.Namespace, diff: Diff) -> dict[str, int]:
    """Directions that get an exclusivity score, by kind; nulls are per model."""
    return {
        "flagged": min(diff.exclusive_flagged, audit.verify),
        "sampled": audit.sample,
        "shared latents": 2 * audit.nulls,
        "random directions": 2 * audit.nulls,
    }


def steering(audit: argparse.Namespace, diff: Diff, assumed: Assumed) -> dict[str, float]:
    """Answers, tokens and GPU-hours of all directions in both models."""
    features = sum(features_scored(audit, diff).values())
    answers = features * len(audit.prompts or PROMPTS) * len(audit.strengths) * 2
    return {"features": features, **_generating(answers, audit.max_new_tokens, assumed)}


def rubric_answers(rubric: Rubric) -> int:
    """Answers to a rubric's prompts of one latent, in both models."""
    return len(rubric.prompts) * len(rubric.strengths) * 2


def rubrics(audit: argparse.Namespace, assumed: Assumed) -> dict[str, dict[str, float]]:
    """Answers, tokens and GPU-hours by rubric."""
    loaded = {name: Rubric.load(name) for name in audit.rubrics}
    return {
        name: _generating(
            audit.rubric_features * rubric_answers(rubric), rubric.sampling.max_new_tokens, assumed
        )
        for name, rubric in loaded.items()
    }


def _generating(answers: int, max_new_tokens: int, assumed: Assumed) -> dict[str, float]:
    """No answer ends before `max_new_tokens`, which is most."""
    tokens = answers * max_new_tokens
    hours = tokens / assumed.tokens_per_second / 3600
    return {"answers": answers, "tokens": tokens, "hours": hours}


def _setting(run: RunConfig, k: int, auxk: bool) -> Setting:
    widths = tuple(model.width for model in models_of(run))
    return Setting(widths, run.sae.num_latents, run.pairs_per_step, k, auxk, run.arch)


def _floor_ms(run: RunConfig, gpu: GPU, k: int, auxk: bool) -> float:
    work = count_work(crosscoder_of(run, k), _setting(run, k, auxk), torch.bfloat16)
    return shares(list(work.values()), 1.0, gpu.limits)["floor_ms"]


def _memory(run: RunConfig, weights: int, k: int, auxk: bool) -> dict[str, int]:
    return expected_bytes(_setting(run, k, auxk), torch.bfloat16, weights)
