"""The model card of a run: what a reader on the hub has to know, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import ModelCardData

from ..harvest.model_identity import source_names
from ..runs.run import Run
from .privacy import is_local, without_places

PROJECT = "sparsify-crosscoder"


def model_card(
    run: Run, repo: str, listed: Mapping[str, Any] | None = None, license: str | None = None
) -> str:
    """The text of a README.md for `repo`, with its metadata.

    `listed` is what `filter --json` wrote of the run, which knows its findings and nulls. Raises
    FileNotFoundError for a run that is not finished.
    """
    config, summary = run.config, run.summary()
    models = [config.model, *config.partners]
    read = summary.whole.get("data", {}).get("alignment", {})
    data = [*read.get("aligned_fraction_per_dataset", [config.dataset, *config.extra_datasets])]
    card = ModelCardData(
        base_model=[name for name in models if not is_local(name)] or None,
        datasets=[name for name in data if not is_local(name) and "/" in name] or None,
        library_name=PROJECT,
        license=license,
        tags=["crosscoder", "model-diffing", "sparse-autoencoder"],
    )
    places = "+".join(source["hookpoint"] for source in summary.sources)
    parts = [
        f"---\n{card.to_yaml()}\n---",
        f"# {repo.rpartition('/')[2]}",
        f"A crosscoder ({summary.arch}): one sparse code that reconstructs the activations of "
        f"{len(models)} language models, with latents that show what they share and what differs. "
        f"Trained with {PROJECT}.",
        _sources(summary.sources, summary.fve_per_source),
        _facts(config, summary, data),
        "## What differs\n\n" + _differences(listed),
        _loading(repo, places, models),
    ]
    return "\n\n".join(parts) + "\n"


def _sources(sources: Sequence[Mapping[str, Any]], fve: Sequence[float] | None) -> str:
    lines = ["| | model | revision | hookpoint | width | FVE |", "|---|---|---|---|---|---|"]
    for s, source in enumerate(sources):
        explained = "not measured" if fve is None else f"{fve[s]:.4f}"
        name = without_places(source["name"])
        where = "" if not is_local(source["name"]) else " (a local folder)"
        lines.append(
            f"| {'ABCDEFGH'[s]} | {name}{where} | {source.get('revision', '')} | "
            f"{source['hookpoint']} | {source['width']} | {explained} |"
        )
    return "## Models\n\n" + "\n".join(lines)


def _facts(config: Any, summary: Any, data: Sequence[str]) -> str:
    whole = summary.whole
    blocks = ", ".join(f"{name} {size:,}" for name, size in whole.get("partition", {}).items())
    rows = [
        ("data", ", ".join(without_places(name) for name in data)),
        ("context", f"{config.ctx_len:,} tokens"),
        ("pairs trained on", f"{summary.pairs:,}" if summary.pairs else "none here"),
        ("latents", f"{summary.num_latents:,} ({blocks})"),
        ("k", f"{whole['k']}"),
        ("mean L0", "not measured" if summary.mean_l0 is None else f"{summary.mean_l0:.1f}"),
        ("FVE, all models", "not measured" if summary.fve is None else f"{summary.fve:.4f}"),
        ("held-out pairs", f"{whole.get('held_out_pairs') or 0:,}"),
        ("dead latents", f"{summary.dead_fraction:.1%} in {summary.dead_window:,} pairs"),
    ]
    if "imported_from" in whole:
        rows.append(("imported from", without_places(str(whole["imported_from"]))))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"## Training and fit\n\n| | |\n|---|---|\n{table}"


def _differences(listed: Mapping[str, Any] | None) -> str:
    if listed is None:
        return (
            "Not listed here, and no rate of false entries is known: `sparsify-crosscoder filter` "
            "lists what differs, `sparsify-crosscoder null` makes pairs without a difference."
        )
    findings = [row for row in listed["rows"] if row["finding"]]
    said = [f"{len(findings):,} findings of {len(listed['rows']):,} entries."]
    nulls = listed.get("nulls") or []
    for null in nulls:
        said.append(
            f"- Null `{without_places(null['name'])}`, a pair without what is looked for: "
            f"{null['findings']:,} findings of {null['tested']:,} that could have been listed "
            f"({null['findings'] / max(null['tested'], 1):.3%})."
        )
    if not nulls:
        said.append("No nulls were made, so no rate of false entries is known.")
    known = [row["q_value"] for row in findings if row.get("q_value") is not None]
    if known:
        said.append(f"- Largest q of the findings: {max(known):.2g}.")
    return "\n".join(said)


def _loading(repo: str, places: str, models: Sequence[str]) -> str:
    local = [name for name in source_names([{"name": m} for m in models]) if name]
    note = ""
    if any(is_local(name) for name in models):
        note = (
            "\n\nSome of the models were read from a folder, and only its name is kept "
            f"({', '.join(local)}). Write your own places into `config.json` to use `Run`."
        )
    return f"""## Loading

```sh
pip install {PROJECT}
```

```python
from sparsify_crosscoder import Crosscoder

crosscoder = Crosscoder.load_from_hub("{repo}", "{places}")
code = crosscoder.encode_sparse([x_a, x_b])  # raw activations, one tensor [N, width] per model
```

With its models and texts, for `top`, `filter` and steering:

```python
from huggingface_hub import snapshot_download
from sparsify_crosscoder import Run

run = Run.open(snapshot_download("{repo}"))
```{note}"""
