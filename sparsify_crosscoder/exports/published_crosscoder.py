"""Crosscoders of dictionary_learning: its `CrossCoder` and `BatchTopKCrossCoder`.

A folder has `config.json` (what the class was made with, under `trainer` where a trainer wrote it)
and the state dict as `model.safetensors`, `ae.pt` or `model_final.pt`. With S models (its layers),
D the width of all of them and M latents:

    encoder.weight [S, D, M]   encoder.bias [M]   decoder.weight [S, M, D]   decoder.bias [S, D]

Activations are `relu(sum over s of x_s @ encoder.weight[s] + encoder.bias)`. Of a BatchTopK one
they stay where they exceed `threshold` after they were multiplied with the sum over models of the
decoder's norms, or with nothing where `code_normalization` is NONE. Where `activation_mean` and
`activation_std` [S, D] are no NaN, `(x - activation_mean) * activation_global_scale` [S] is read in
place of x.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..config import CrosscoderConfig
from ..crosscoders import Crosscoder
from ..endings import UsageError
from ..records import read_json, reading

WEIGHTS = ("model.safetensors", "ae.pt", "model_final.pt")
PUBLISHED = ("CrossCoder", "BatchTopKCrossCoder")
_NORMALIZATIONS = {1: "CROSSCODER", 2: "SAE", 3: "MIXED", 4: "NONE", 5: "DECOUPLED"}
_RANK_BY = {"CROSSCODER": "score", "NONE": "activation"}
_NEEDED = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
_RESTORE = "Download it again."


class Published(NamedTuple):
    """What a folder holds, checked to be what a crosscoder of ours can compute."""

    config: CrosscoderConfig
    weights: Mapping[str, Tensor]
    threshold: float
    """Scores that reach it are active; 0 where all positive ones are."""

    @property
    def d_sources(self) -> list[int]:
        sources, width, _ = self.weights["encoder.weight"].shape
        return [width] * sources

    @property
    def normalized(self) -> bool:
        """Whether it reads activations around their mean, on one scale for each model."""
        return _is_normalized(self.weights)

    def crosscoder(self, sources: list[dict[str, Any]]) -> Crosscoder:
        """The same in float32 as one of ours, with what its sources are."""
        made = Crosscoder(self.d_sources, self.config, sources=sources)
        state = made.state_dict()
        encoder, decoder = self.weights["encoder.weight"], self.weights["decoder.weight"]
        state["encoder.weight"] = torch.cat([of.T for of in encoder], 1)
        state["encoder.bias"] = self.weights["encoder.bias"]
        state["W_dec"] = torch.cat(list(decoder), 1)
        state["b_dec"] = self.weights["decoder.bias"].flatten()
        state["threshold"] = torch.tensor([self.threshold])
        if self.normalized:
            state["mean"] = self.weights["activation_mean"].flatten()
            state["factors"] = self.weights["activation_global_scale"]
        made.load_state_dict({name: tensor.float() for name, tensor in state.items()})
        return made.eval()


def read_published(folder: Path) -> Published:
    """The crosscoder in a folder.

    Raises UsageError, in one line, for what is no such crosscoder or computes what ours cannot.
    """
    file = folder / "config.json"
    if not file.exists():
        raise UsageError(f"'{folder}' has no config.json: it is no crosscoder's folder.")
    options = read_json(file, dict, _RESTORE)
    options = options.get("trainer", options)
    weights = _weights(folder)
    absent = [name for name in _NEEDED if name not in weights]
    if absent:
        raise UsageError(
            f"'{folder}' has no {', '.join(absent)}: only CrossCoder and BatchTopKCrossCoder with "
            "linear decoders can be imported."
        )
    _check_shapes(folder, weights)
    name = options.get("dict_class", PUBLISHED["threshold" in weights])
    if name not in PUBLISHED:
        raise UsageError(f"'{folder}' is a {name}; {' and '.join(PUBLISHED)} can be imported.")
    rank_by, threshold = _selection(folder, name, options, weights)
    if _is_normalized(weights) and not options.get("keep_relative_variance", True):
        raise UsageError(
            f"'{folder}' scales each dimension of the activations by itself; only one scale for "
            "each model can be imported."
        )
    latents = weights["encoder.weight"].shape[2]
    k = int(weights.get("k", options.get("k") or min(100, latents)))
    config = CrosscoderConfig(num_latents=latents, k=min(k, latents), rank_by=rank_by)
    return Published(config, weights, threshold)


def _weights(folder: Path) -> dict[str, Tensor]:
    for name in WEIGHTS:
        file = folder / name
        if file.exists():
            with reading(file, _RESTORE, "damaged or truncated"):
                if file.suffix == ".safetensors":
                    return load_file(str(file))
                state = torch.load(file, map_location="cpu", weights_only=True)
                return {key: one for key, one in state.items() if isinstance(one, Tensor)}
    raise UsageError(f"'{folder}' has none of {', '.join(WEIGHTS)}.")


def _check_shapes(folder: Path, weights: Mapping[str, Tensor]) -> None:
    shapes = {name: tuple(weights[name].shape) for name in _NEEDED}
    encoder = shapes["encoder.weight"]
    if len(encoder) == 3:
        sources, width, latents = encoder
        fitting = ((latents,), (sources, latents, width), (sources, width))
        if sources > 1 and tuple(shapes[name] for name in _NEEDED[1:]) == fitting:
            return
    said = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    raise UsageError(f"The weights in '{folder}' are not a crosscoder's of two models: {said}.")


def _selection(
    folder: Path, name: str, options: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> tuple[Any, float]:
    """By what entries are compared with a threshold, and the smallest score that reaches it."""
    if name == "CrossCoder":
        return "activation", 0.0
    number = int(weights.get("code_normalization_id", torch.tensor(1)))
    asked = str(options.get("code_normalization") or _NORMALIZATIONS.get(number, number))
    normalization = asked.rpartition(".")[2].upper()
    if normalization not in _RANK_BY:
        raise UsageError(
            f"'{folder}' compares latents by code_normalization {normalization}; "
            f"{' and '.join(_RANK_BY)} can be imported."
        )
    threshold = weights.get("threshold", torch.tensor(-1.0)).float()
    if threshold.numel() != 1 or not threshold >= 0:
        raise UsageError(
            f"'{folder}' has learned no threshold, so what is active depends on the batch: only "
            "one that was trained for longer can be imported."
        )
    # There what exceeds the threshold is active, here what reaches it.
    return _RANK_BY[normalization], float(torch.nextafter(threshold, torch.tensor(torch.inf)))


def _is_normalized(weights: Mapping[str, Tensor]) -> bool:
    needed = ("activation_mean", "activation_std", "activation_global_scale")
    # Where there is no normalisation, the first two are NaN.
    return all(name in weights and not bool(weights[name].isnan().any()) for name in needed)
