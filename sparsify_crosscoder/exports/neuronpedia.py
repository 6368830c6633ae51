"""Neuronpedia's files for import: rows of its tables, as JSON lines.

    MODEL/SOURCE/release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl      one row each
    MODEL/SOURCE/{features,activations,explanations}/batch-0.jsonl.gz           a row per line

Fields are those of SAEDashboard's `neuronpedia/neuronpedia_export.py` (commit 3ea1249), and of
explanations those that Neuronpedia's own `neuronpedia_utils/export-data.py` (commit 1a80fe9) reads
and writes. What we do not measure is empty, as it is there by default.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..hashing import hash_text

CREATOR = "clkht01d40000jv08hvalcvly"
"""The user that Neuronpedia's import knows without being told of one."""

BATCH = 1024
"""Features in a file."""


@dataclass(frozen=True)
class Place:
    """Which dictionary rows belong to."""

    model: str
    """Neuronpedia's id of the model."""

    layer: int
    set_name: str
    created: str
    """Date and time, ISO 8601."""

    @property
    def source(self) -> str:
        """Neuronpedia's id of the dictionary of a layer."""
        return f"{self.layer}-{self.set_name}"

    @property
    def keys(self) -> dict[str, Any]:
        """What the rows of features, activations and explanations have in common."""
        return {"modelId": self.model, "layer": self.source}


@dataclass(frozen=True)
class Context:
    """A passage in one model's tokens, and the latent's activation at each."""

    tokens: Sequence[str]
    values: Sequence[float]


@dataclass(frozen=True)
class Feature:
    """What one model's rows say of a latent."""

    index: int
    frequency: float
    """Share of the pairs on which it is active."""

    contexts: Sequence[Context]
    """The strongest first."""

    histogram: tuple[Sequence[float], Sequence[int]]
    """Middles of the bins of its activations, and how many are in each."""

    promoted: Sequence[tuple[str, float]]
    suppressed: Sequence[tuple[str, float]]
    vector: Sequence[float]
    """Its decoder in the model's own space; empty where it has none in this model."""

    description: str


def feature_row(feature: Feature, place: Place, hook: str | None) -> dict[str, Any]:
    """The row of a latent."""
    middles, counts = feature.histogram
    lists = (
        *("topkCosSimIndices", "topkCosSimValues"),
        *("neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1"),
        *("correlated_neurons_indices", "correlated_neurons_pearson", "correlated_neurons_l1"),
        *("correlated_features_indices", "correlated_features_pearson", "correlated_features_l1"),
        *("logits_hist_data_bar_heights", "logits_hist_data_bar_values", "decoder_weights_dist"),
    )
    return {
        **place.keys,
        "index": str(feature.index),
        "creatorId": CREATOR,
        "createdAt": place.created,
        "maxActApprox": max((max(c.values) for c in feature.contexts), default=0.0),
        "hasVector": bool(feature.vector),
        "vector": list(feature.vector),
        "vectorLabel": None,
        "vectorDefaultSteerStrength": 10,
        "hookName": hook,
        **{name: [] for name in lists},
        "neg_str": [token for token, _ in feature.suppressed],
        "neg_values": [-z for _, z in feature.suppressed],
        "pos_str": [token for token, _ in feature.promoted],
        "pos_values": [z for _, z in feature.promoted],
        "frac_nonzero": feature.frequency,
        "freq_hist_data_bar_heights": list(counts),
        "freq_hist_data_bar_values": list(middles),
        "sourceSetName": place.set_name,
    }


def activation_rows(feature: Feature, place: Place) -> list[dict[str, Any]]:
    """A row for each of a latent's passages."""
    rows = []
    for rank, context in enumerate(feature.contexts):
        values = list(context.values)
        rows.append(
            {
                "id": _id(place, "activation", feature.index, rank),
                "tokens": list(context.tokens),
                **place.keys,
                "index": str(feature.index),
                "maxValue": max(values),
                "maxValueTokenIndex": values.index(max(values)),
                "minValue": min(values),
                "values": values,
                "creatorId": CREATOR,
                "createdAt": place.created,
                "dfaValues": [],
                "lossValues": [],
                **dict.fromkeys(
                    (
                        *("dataSource", "dataIndex", "dfaTargetIndex", "dfaMaxValue"),
                        *("logitContributions", "binMin", "binMax", "binContains"),
                        *("qualifyingTokenIndex", "zIndices", "zValues"),
                    )
                ),
            }
        )
    return rows


def explanation_row(feature: Feature, place: Place) -> dict[str, Any]:
    """The row of a latent's description."""
    return {
        "id": _id(place, "explanation", feature.index, 0),
        **place.keys,
        "index": str(feature.index),
        "authorId": CREATOR,
        "description": feature.description,
        **dict.fromkeys(
            (
                *("embedding", "typeName", "explanationModelName"),
                *("umap_x", "umap_y", "umap_cluster", "umap_log_feature_sparsity"),
            )
        ),
    }


def dictionary_rows(place: Place, width: int, data: str, title: str) -> dict[str, dict[str, Any]]:
    """The rows of the release, the model, the set of dictionaries and the dictionary."""
    ours = {"creatorId": CREATOR, "createdAt": place.created}
    return {
        "release": {
            **ours,
            "name": place.set_name,
            "description": title,
            "descriptionShort": title,
            "creatorName": "sparsify-crosscoder",
            "creatorNameShort": "sparsify-crosscoder",
            "creatorEmail": None,
            "visibility": "PUBLIC",
            "isNewUi": False,
            "featured": False,
            "urls": [],
            "defaultSourceSetName": None,
            "defaultSourceId": None,
            "defaultUmapSourceIds": [],
        },
        "model": {
            **ours,
            "id": place.model,
            "instruct": False,
            "displayNameShort": place.model,
            "displayName": place.model,
            "tlensId": None,
            "dimension": width,
            "visibility": "PUBLIC",
            "defaultSourceSetName": None,
            "defaultSourceId": None,
            "inferenceEnabled": False,
            "layers": 0,
            "neuronsPerLayer": 0,
            "owner": "",
            "updatedAt": place.created,
            "website": None,
        },
        "sourceset": {
            **ours,
            "modelId": place.model,
            "name": place.set_name,
            "hasDashboards": True,
            "visibility": "PUBLIC",
            "description": title,
            "type": "crosscoder",
            "creatorName": "sparsify-crosscoder",
            "urls": [],
            "creatorEmail": None,
            "releaseName": place.set_name,
            "defaultOfModelId": None,
            "defaultRange": 1,
            "defaultShowBreaks": True,
            **dict.fromkeys(
                ("showDfa", "showCorrelated", "showHeadAttribution", "showUmap"), False
            ),
        },
        "source": {
            **ours,
            "id": place.source,
            "modelId": place.model,
            "setName": place.set_name,
            "hasDashboards": True,
            "inferenceEnabled": False,
            "inferenceHosts": [],
            "visibility": "PUBLIC",
            "hasUmap": False,
            "hasUmapLogSparsity": False,
            "hasUmapClusters": False,
            "num_prompts": None,
            "num_tokens_in_prompt": None,
            "dataset": data,
            "notes": None,
            **dict.fromkeys(
                (
                    *("saelensConfig", "saelensRelease", "saelensSaeId"),
                    *("hfRepoId", "hfFolderId", "defaultOfModelId"),
                )
            ),
        },
    }


def write_dictionary(
    folder: Path,
    place: Place,
    features: Sequence[Feature],
    hook: str | None,
    rows: dict[str, dict[str, Any]],
) -> Path:
    """Write one model's files into `folder/MODEL/SOURCE`, which is returned."""
    target = folder / place.model / place.source
    target.mkdir(parents=True)
    for name, row in rows.items():
        (target / f"{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    for start in range(0, len(features), BATCH):
        some, name = features[start : start + BATCH], f"batch-{start // BATCH}.jsonl.gz"
        _write(target / "features" / name, (feature_row(one, place, hook) for one in some))
        every = (row for one in some for row in activation_rows(one, place))
        _write(target / "activations" / name, every)
        described = (explanation_row(one, place) for one in some if one.description)
        _write(target / "explanations" / name, described)
    return target


def _write(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    file.parent.mkdir(exist_ok=True)
    with gzip.open(file, "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)


def _id(place: Place, table: str, *which: int) -> str:
    return "c" + hash_text(f"{place.model}/{place.source}/{table}/{which}")[:24]
