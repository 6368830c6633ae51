"""The bundle for Neuronpedia, read by a loader that states the fields of its import."""

import gzip
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from sparsify_crosscoder import DashboardConfig, Run, export_dashboards
from sparsify_crosscoder.__main__ import main
from sparsify_crosscoder.records import check

LATENTS = [0, 3, 20, 63]
"""Of the tiny run: one of each exclusive block (3 latents each), and shared ones."""

SOURCES = {"llama": "1-crosscoder-run", "gpt2": "2-crosscoder-run"}


@dataclass
class Activation:
    """A row of activations/, as SAEDashboard's neuronpedia_export.Activation (commit 3ea1249)."""

    id: str
    tokens: list[str]
    index: str
    layer: str
    modelId: str
    maxValue: float
    maxValueTokenIndex: int
    minValue: float
    values: list[float]
    creatorId: str
    dataSource: str | None
    dataIndex: str | None
    dfaValues: list[float]
    dfaTargetIndex: int | None
    dfaMaxValue: float | None
    createdAt: str
    lossValues: list[float]
    logitContributions: str | None
    binMin: float | None
    binMax: float | None
    binContains: float | None
    qualifyingTokenIndex: int | None
    zIndices: list[list[int]] | None
    zValues: list[float] | None


@dataclass
class Feature:
    """A row of features/, as its Feature."""

    modelId: str
    layer: str
    index: str
    creatorId: str | None
    createdAt: str
    maxActApprox: float | None
    hasVector: bool
    vector: list[float]
    vectorLabel: str | None
    vectorDefaultSteerStrength: float | None
    hookName: str | None
    topkCosSimIndices: list[int]
    topkCosSimValues: list[float]
    neuron_alignment_indices: list[int]
    neuron_alignment_values: list[float]
    neuron_alignment_l1: list[float]
    correlated_neurons_indices: list[int]
    correlated_neurons_pearson: list[float]
    correlated_neurons_l1: list[float]
    correlated_features_indices: list[int]
    correlated_features_pearson: list[float]
    correlated_features_l1: list[float]
    neg_str: list[str]
    neg_values: list[float]
    pos_str: list[str]
    pos_values: list[float]
    frac_nonzero: float
    freq_hist_data_bar_heights: list[float]
    freq_hist_data_bar_values: list[float]
    logits_hist_data_bar_heights: list[float]
    logits_hist_data_bar_values: list[float]
    decoder_weights_dist: list[float]
    sourceSetName: str | None


@dataclass
class Explanation:
    """A row of explanations/, as the columns of Neuronpedia's export-data.py (commit 1a80fe9)."""

    id: str
    modelId: str
    layer: str
    index: str
    authorId: str
    description: str
    embedding: list[float] | None
    typeName: str | None
    explanationModelName: str | None
    umap_x: float | None
    umap_y: float | None
    umap_cluster: int | None
    umap_log_feature_sparsity: float | None


@dataclass
class Model:
    id: str
    instruct: bool
    creatorId: str
    displayNameShort: str
    displayName: str
    tlensId: str | None
    dimension: int | None
    visibility: str
    defaultSourceSetName: str | None
    defaultSourceId: str | None
    inferenceEnabled: bool
    layers: int
    neuronsPerLayer: int
    createdAt: str
    owner: str
    updatedAt: str
    website: str | None


@dataclass
class Source:
    id: str
    modelId: str
    setName: str
    creatorId: str
    hasDashboards: bool
    inferenceEnabled: bool
    inferenceHosts: list[str]
    saelensConfig: str | None
    saelensRelease: str | None
    saelensSaeId: str | None
    hfRepoId: str | None
    hfFolderId: str | None
    visibility: str
    defaultOfModelId: str | None
    hasUmap: bool
    hasUmapLogSparsity: bool
    hasUmapClusters: bool
    num_prompts: int | None
    num_tokens_in_prompt: int | None
    dataset: str | None
    notes: str | None
    createdAt: str


@dataclass
class SourceRelease:
    name: str
    description: str
    creatorName: str
    creatorId: str
    visibility: str
    isNewUi: bool
    featured: bool
    descriptionShort: str | None
    urls: list[str]
    creatorEmail: str | None
    creatorNameShort: str | None
    defaultSourceSetName: str | None
    defaultSourceId: str | None
    defaultUmapSourceIds: list[str]
    createdAt: str


@dataclass
class SourceSet:
    modelId: str
    name: str
    creatorId: str
    hasDashboards: bool
    visibility: str
    description: str
    type: str
    creatorName: str
    urls: list[str]
    creatorEmail: str | None
    releaseName: str | None
    defaultOfModelId: str | None
    defaultRange: int
    defaultShowBreaks: bool
    showDfa: bool
    showCorrelated: bool
    showHeadAttribution: bool
    showUmap: bool
    createdAt: str


SINGLE = {"release": SourceRelease, "model": Model, "sourceset": SourceSet, "source": Source}
MANY = {"features": Feature, "activations": Activation, "explanations": Explanation}


def load(folder: Path) -> dict[str, list[Any]]:
    """A dictionary's rows by table, each with exactly the fields of the import, of their types."""
    found: dict[str, list[Any]] = {}
    assert {place.name for place in folder.iterdir()} == {
        *(f"{one}.jsonl" for one in SINGLE),
        *MANY,
    }
    for table, cls in SINGLE.items():
        lines = (folder / f"{table}.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == 1
        found[table] = [_row(cls, line) for line in lines]
    for table, cls in MANY.items():
        files = sorted((folder / table).iterdir())
        assert [file.name for file in files] == ["batch-0.jsonl.gz"]
        with gzip.open(files[0], "rt", encoding="utf-8") as file:
            found[table] = [_row(cls, line) for line in file]
    return found


def _row(cls: type, line: str) -> Any:
    row = json.loads(line)
    assert row.keys() == {field.name for field in fields(cls)}, cls.__name__
    hints = get_type_hints(cls)
    check({name: float(v) if hints[name] is float else v for name, v in row.items()}, cls)
    return cls(**row)


@pytest.fixture(scope="module")
def bundle(run, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "out"
    config = DashboardConfig(LATENTS, pairs=3000)
    made = export_dashboards(Run.open(run), out, config, device="cpu")
    assert made.latents == LATENTS and not made.unread
    return out


@pytest.fixture(scope="module")
def rows(bundle) -> dict[str, dict[str, list[Any]]]:
    assert {place.name for place in bundle.iterdir()} == SOURCES.keys()
    return {model: load(bundle / model / source) for model, source in SOURCES.items()}


@pytest.fixture(scope="module")
def codes(run):
    """The dense code `[N, M]` of the same pairs."""
    opened = Run.open(run)
    crosscoder, first = opened.crosscoder(), opened.first_pairs(3000, "cpu")
    chunks = [(crosscoder.encode_sparse(list(raw)).to_dense(), raw) for raw, *_ in first.chunks]
    from sparsify_crosscoder.store.normalization import within_norm

    kept = [
        code[within_norm(list(raw), 2.0, medians=crosscoder.median_norms)] for code, raw in chunks
    ]
    return torch.cat(kept).detach()


def test_rows_have_the_fields_of_the_import_and_refer_to_each_other(rows):
    for model, tables in rows.items():
        (source,), (kind,) = tables["source"], tables["sourceset"]
        assert (source.modelId, source.id) == (model, SOURCES[model])
        assert source.setName == kind.name and kind.releaseName == tables["release"][0].name
        assert source.dataset == "texts.txt"
        for table in MANY:
            for row in tables[table]:
                assert (row.modelId, row.layer) == (model, source.id)
                assert int(row.index) in LATENTS
        ids = [row.id for table in ("activations", "explanations") for row in tables[table]]
        assert len(set(ids)) == len(ids)


def test_frequencies_histograms_and_largest_activations_are_those_of_the_code(rows, codes):
    for tables in rows.values():
        assert [int(row.index) for row in tables["features"]] == LATENTS
        for row in tables["features"]:
            acts = codes[:, int(row.index)]
            active = acts[acts > 0]
            assert row.frac_nonzero == pytest.approx(len(active) / len(acts))
            assert sum(row.freq_hist_data_bar_heights) == len(active)
            if len(active):
                assert row.maxActApprox == pytest.approx(float(active.max()), abs=1e-3)
                mean = sum(
                    height * value
                    for height, value in zip(
                        row.freq_hist_data_bar_heights, row.freq_hist_data_bar_values, strict=True
                    )
                ) / len(active)
                assert mean == pytest.approx(float(active.mean()), abs=float(active.max()) / 50)


def test_passages_have_activations_at_their_tokens(rows, run):
    texts = (run.parent / "texts.txt").read_text(encoding="utf-8")
    for tables in rows.values():
        by_latent: dict[str, list[float]] = {}
        whole = 0
        for row in tables["activations"]:
            assert len(row.tokens) == len(row.values) <= 64
            assert row.values[row.maxValueTokenIndex] == row.maxValue == max(row.values) > 0
            assert row.minValue == min(row.values) >= 0
            inside = "".join(row.tokens[1:-1]).replace("<s>", "").strip()
            if "\ufffd" not in inside:  # no character that is in several tokens
                whole += 1
                assert inside in texts
            by_latent.setdefault(row.index, []).append(row.maxValue)
        assert whole > 10
        assert by_latent and all(len(found) <= 20 for found in by_latent.values())
        for found in by_latent.values():
            assert found == sorted(found, reverse=True)
    one, other = (tables["activations"] for tables in rows.values())
    assert [r.maxValue for r in one] == [r.maxValue for r in other]  # the same pairs
    assert [r.tokens for r in one] != [r.tokens for r in other]  # in other tokens


def test_directions_are_those_of_the_model_that_writes_them(rows, run):
    crosscoder = Run.open(run).crosscoder()
    for s, tables in enumerate(rows.values()):
        other = {0: 3, 1: 0}[s]  # exclusive to the other model
        for row in tables["features"]:
            expected = crosscoder.decoder(s)[int(row.index)] / crosscoder.factors[s]
            assert row.hasVector is (int(row.index) != other)
            assert row.hookName == f"blocks.{s + 1}.hook_resid_post"
            if row.hasVector:
                torch.testing.assert_close(torch.tensor(row.vector), expected.detach())
                assert len(row.pos_str) == len(row.pos_values) == 10
                assert row.pos_values == sorted(row.pos_values, reverse=True)
                assert min(row.pos_values) > 0 > max(row.neg_values)
            else:
                assert not row.vector and not row.pos_str


def test_explanations_are_an_audits_or_what_was_counted(run, bundle, rows, tmp_path, capsys):
    described = {int(row.index): row.description for row in rows["llama"]["explanations"]}
    fired = {int(row.index) for row in rows["llama"]["features"] if row.frac_nonzero}
    assert fired <= described.keys()
    assert all("Fires on “" in described[latent] for latent in fired)
    table = tmp_path / "features.parquet"
    parquet.write_table(
        pa.table({"latent": [20, 63], "explanation": ["numbers in lists", None]}), table
    )
    argv = ["export", str(run), "--format", "neuronpedia", "--out", str(tmp_path / "out")]
    argv += ["--latents", "20", "63", "--pairs", "3000", "--table", str(table), "--device", "cpu"]
    main(argv)
    assert "Wrote 2 latents" in capsys.readouterr().out
    again = load(tmp_path / "out" / "llama" / SOURCES["llama"])["explanations"]
    by_latent = {int(row.index): row.description for row in again}
    assert by_latent[20] == "numbers in lists"
    assert by_latent.get(63) == described.get(63)


def test_so_many_are_chosen_that_fire(run, tmp_path):
    made = export_dashboards(
        Run.open(run), tmp_path / "out", DashboardConfig(count=12, pairs=3000), device="cpu"
    )
    assert len(set(made.latents)) == len(made.latents) == 12
    features = load(tmp_path / "out" / "gpt2" / SOURCES["gpt2"])["features"]
    assert all(row.frac_nonzero > 0 for row in features)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--latents", "64"], "There are latents 0..63, not 64"),
        (["--table", "no.parquet"], "is no features.parquet"),
    ],
)
def test_wrong_use_is_said_and_nothing_is_written(options, said, run, tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(run), "--format", "neuronpedia", "--out", str(out), *options])
    assert stopped.value.code == 2 and said in capsys.readouterr().err
    assert not out.exists()


def test_a_half_needs_to_know_whose(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(run), "--format", "saelens", "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2 and "say which, --source 0" in capsys.readouterr().err
