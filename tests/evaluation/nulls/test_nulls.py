"""Nulls of runs over tiny models, from the texts to the q values of a run's list."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from sparsify_crosscoder import ActivationStore, Run
from sparsify_crosscoder.__main__ import main
from sparsify_crosscoder.evaluation.nulls import making
from sparsify_crosscoder.evaluation.nulls.fine_tune import relative_distance
from sparsify_crosscoder.evaluation.nulls.making import (
    NullConfig,
    made_nulls,
    make_null,
    next_layer,
    null_folder,
    nulls_of,
)
from sparsify_crosscoder.evaluation.nulls.rounded_model import rounded
from sparsify_crosscoder.harvest.adapter_name import parts_of
from sparsify_crosscoder.harvest.model_name import ModelName

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def own_run(run, tmp_path_factory) -> Path:
    """A copy of the run over two families, for nulls of its own."""
    return shutil.copytree(run, tmp_path_factory.mktemp("nulls") / "run")


@pytest.fixture(scope="module")
def own_twins(twins, tmp_path_factory) -> Path:
    """A copy of the run over a model and its fine-tune."""
    return shutil.copytree(twins, tmp_path_factory.mktemp("nulls") / "twins")


@pytest.fixture(scope="module")
def nulled(own_twins) -> Path:
    """The run over a model and its fine-tune, with the nulls that go with it."""
    main(["null", str(own_twins), "--device", "cpu"])
    return own_twins


def stored(run: Run) -> ActivationStore:
    """The pairs of a run with a store."""
    assert run.config.cache is not None
    return ActivationStore.open(run.config.cache)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_which_nulls_go_with_a_pair_follows_from_its_models(run, twins):
    assert nulls_of(Run.open(run)) == ("layer",)
    assert nulls_of(Run.open(twins)) == ("rounded", "fine-tune")
    of = Run.open(run)
    elsewhere = [end._replace(hookpoint="embed_tokens") for end in of.ends]
    of.__dict__["ends"] = elsewhere
    assert nulls_of(of) == ()


@pytest.mark.slow
def test_of_two_families_a_model_stands_against_itself_one_layer_on(own_run):
    opened = Run.open(own_run)
    config = NullConfig("layer", source=1, seed=3, steps=5)
    null = make_null(opened, config, CPU)
    assert null.path == null_folder(opened, config) / "run"
    assert [end.hookpoint for end in null.ends] == ["h.2", "h.3"]
    assert null.ends[0].model == null.ends[1].model == opened.ends[1].model
    assert null.summary().num_latents == 64 and null.config.init_seeds == [3]
    own, its = (stored(r) for r in (opened, null))
    assert its.d_sources == [32, 32] and its.dtype == own.dtype
    assert set(own.windows["text_id"]) == set(its.windows["text_id"])
    assert sorted(null.texts()["text"]) == sorted(opened.texts()["text"])
    before = (null.path / "summary.json").stat().st_mtime_ns
    again = make_null(opened, config, CPU)
    assert (again.path / "summary.json").stat().st_mtime_ns == before


def test_a_rounded_model_is_near_its_own_and_not_the_same(nulled):
    store = ActivationStore.open(nulled / "nulls" / "rounded-seed0" / "store")
    first, second = (x.float() for x in store.rows(torch.arange(2000)))
    assert 0.001 < relative_distance(second, first) < 0.1


def test_weights_are_rounded_by_row_to_255_levels():
    weight = torch.rand(3, 4000).sub(0.5) * torch.tensor([[1.0], [10.0], [0.0]])
    found = rounded(weight)
    steps = weight.abs().amax(1, keepdim=True) / 127
    assert (found - weight).abs().max() <= steps.max() / 2 * (1 + 1e-4)
    assert ((found - weight).abs() <= steps / 2 * (1 + 1e-4)).all()
    assert 200 < len(found[0].unique()) <= 255 and not found[2].any()


def test_a_fine_tune_goes_as_far_as_the_runs_models_are_apart(nulled):
    opened = Run.open(nulled)
    folder = nulled / "nulls" / "fine-tune-seed0"
    asked = json.loads((folder / "fine_tune.json").read_text(encoding="utf-8"))
    own = stored(opened).rows(torch.arange(4000))
    assert asked["asked"] == pytest.approx(relative_distance(own[1], own[0]), rel=0.1)
    null = Run.open(folder / "run")
    parts = parts_of(ModelName(null.ends[1].model))
    assert parts.adapter is not None and parts.base.name == opened.ends[0].model
    its = ActivationStore.open(folder / "store").rows(torch.arange(4000))
    assert 0 < relative_distance(its[1], its[0]) < 3 * asked["asked"]
    assert asked["reached"] > 0
    # What it learnt is not what it is read on.
    assert sorted([*null.texts()["text"], *opened.texts()["text"][:96]]) == sorted(
        opened.texts()["text"]
    )


def test_filter_has_the_q_values_that_the_nulls_give(own_run, tmp_path, capsys):
    main(["null", str(own_run), "--steps", "5", "--device", "cpu"])
    main(["filter", str(own_run), "--json", str(tmp_path / "found.json"), "--device", "cpu"])
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert "layer-seed0" in [null["name"] for null in found["nulls"]]
    assert "findings where nothing is to be found: layer-seed0 " in capsys.readouterr().out
    values = [row["q_value"] for row in found["rows"]]
    assert values and values == sorted(values)
    for row in found["rows"]:
        low, high = row["q_interval"]
        assert 0 <= low <= row["q_value"] <= high <= 1
    kept = json.loads((own_run / "nulls/layer-seed0/list.json").read_text(encoding="utf-8"))
    (null,) = (null for null in found["nulls"] if null["name"] == "layer-seed0")
    assert kept["tested"] == null["tested"] > len(kept["scores"])


def test_with_q_the_findings_are_those_up_to_it(own_run, tmp_path):
    for q in (0.2, 1.0):
        file = tmp_path / f"{q}.json"
        main(["filter", str(own_run), "--q", str(q), "--json", str(file), "--device", "cpu"])
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
        assert [row["finding"] for row in rows] == [row["q_value"] <= q for row in rows]


def test_what_next_tokens_do_not_tell_of_is_no_finding_at_any_q(nulled, tmp_path):
    file = tmp_path / "found.json"
    main(["filter", str(nulled), "--q", "1", "--json", str(file), "--device", "cpu"])
    found = json.loads(file.read_text(encoding="utf-8"))
    assert [null["name"] for null in found["nulls"]] == ["fine-tune-seed0", "rounded-seed0"]
    silent = [row for row in found["rows"] if row["kl"] < found["differences"]["least_kl"]]
    assert silent
    assert all(row["q_value"] is None and not row["finding"] for row in silent)


def test_a_pair_that_is_its_own_null_has_no_findings(own_run, run, tmp_path):
    """What is listed of the very same pair is as strong as all that is found."""
    file = tmp_path / "found.json"
    words = ["filter", str(run), "--nulls", str(own_run), "--q", "0.5", "--device", "cpu"]
    main([*words, "--json", str(file)])
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["rows"] and not any(row["finding"] for row in found["rows"])
    assert {row["q_value"] for row in found["rows"]} == {1.0}


@pytest.mark.slow
def test_a_null_is_never_taken_for_another(own_run):
    opened = Run.open(own_run)
    make_null(opened, NullConfig("layer", seed=7, steps=3), CPU)
    with pytest.raises(ValueError, match="other settings"):
        make_null(opened, NullConfig("layer", seed=7, steps=4), CPU)
    names = {NullConfig(kind).name for kind in ("one/base", "other/base", "layer")}
    assert len(names) == 3 and "layer-seed0" in names


def test_of_an_adapter_the_base_is_rounded(nulled, tmp_path):
    null = Run.open(nulled / "nulls" / "fine-tune-seed0" / "run")
    copied = Run.open(shutil.copytree(null.path, tmp_path / "run"))
    made = make_null(copied, NullConfig("rounded", source=1, steps=4), CPU)
    assert made.ends[0].model == copied.ends[0].model


def test_what_cannot_be_done_is_said_in_one_line(run, twins, tmp_path, capsys):
    for words, said in (
        (["filter", run, "--q", "0.1"], "A q value needs nulls: `sparsify-crosscoder null"),
        (["filter", run, "--q", "0"], "--q is a share of findings above 0, not 0.0"),
        (["filter", run, "--q", "0.1", "--reference", "x"], "no measure of a list"),
        (["null", run, "--source", "2"], "the run has models 0 to 1"),
        (["null", run, "--steps", "0"], "--steps must be at least 1"),
    ):
        with pytest.raises(SystemExit):
            main([str(word) for word in words])
        assert said in capsys.readouterr().err
    assert not (run / "nulls").exists()


def test_the_next_layer_is_the_same_place_one_on():
    assert next_layer("layers.15", 30) == "layers.16"
    assert next_layer("model.layers.9.mlp", 30) == "model.layers.10.mlp"
    assert next_layer("h.11", 12) == "h.10"
    with pytest.raises(ValueError, match="names no layer"):
        next_layer("embed_tokens", 12)


def test_a_null_that_was_stopped_goes_on(twins, tmp_path, monkeypatch):
    copied = Run.open(shutil.copytree(twins, tmp_path / "run"))
    config = NullConfig("rounded", steps=4)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(making, "train", stop)
        with pytest.raises(KeyboardInterrupt):
            make_null(copied, config, CPU)
    assert made_nulls(copied) == []
    assert (null_folder(copied, config) / "partner").is_dir()
    make_null(copied, config, CPU)
    assert [null.path for null in made_nulls(copied)] == [null_folder(copied, config) / "run"]
