"""A store is of the models that it was harvested from, whatever these are called."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from transformers import AutoModelForCausalLM

from sparsify_crosscoder.harvest.model_name import name_models
from sparsify_crosscoder.harvest.placement import Placement
from sparsify_crosscoder.harvest.sources import load_sources
from sparsify_crosscoder.store.manifest import describe_source, same_sources
from sparsify_crosscoder.store.models import check_store_models
from tests.support.models import change_a_value, put_into_hub_cache, save_tiny_model
from tests.support.tokenizers import byte_level_tokenizer

COMMITS = ["a" * 40, "b" * 40]
NONE = [None, None]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "sft")):
        tokenizer = byte_level_tokenizer()
        save_tiny_model(root / name / "final", "llama", tokenizer, width=16, layers=2, seed=seed)
    return root


@pytest.fixture(scope="module")
def sources(models):
    names = [str(models / name / "final") for name in ("base", "sft")]
    return [
        describe_source(one)
        for one in load_sources(names, placement=Placement("cpu"), dtype="float32")
    ]


def check(sources, *names, revisions=NONE):
    check_store_models("store", sources, [str(name) for name in names], revisions)


def older(sources):
    """What a store of an earlier version says of the same sources."""
    return [
        {
            **{key: value for key, value in source.items() if key not in ("sampled", "checkpoint")},
            "weights": source["sampled"],
        }
        for source in sources
    ]


@pytest.mark.parametrize("store", [list, older])
def test_the_models_in_their_order_are_accepted_also_moved(store, sources, models, tmp_path):
    known = store(sources)
    check(known, models / "base" / "final", models / "sft" / "." / "final")
    shutil.copytree(models, tmp_path / "moved")
    check(known, tmp_path / "moved" / "base" / "final", models / "sft" / "final")
    with pytest.raises(ValueError, match="name the same models in this order"):
        check(known, models / "sft" / "final", models / "base" / "final")


def test_models_that_are_gone_are_accepted_by_their_recorded_names_alone(sources):
    gone = [
        {**one, "name": f"/w/{n}/final"} for n, one in zip(("base", "sft"), sources, strict=True)
    ]
    check(gone, "/w/base/final", "/w/sft/final")
    for names in (
        ("/w/sft/final", "/w/base/final"),
        ("/w/other/final", "/w/sft/final"),
        ("/w/base/final", "final"),
        ("/w/base/final",),
    ):
        with pytest.raises(ValueError, match=r"/w/base/final at .*name the same models"):
            check_store_models("store", gone, names, [None] * len(names))


def test_the_refusal_names_both_models_and_the_right_place(sources, models):
    with pytest.raises(ValueError) as refused:
        check(sources, models / "sft" / "final", models / "base" / "final")
    assert f"'{models}/sft/final' is not its model 1: it is the store's model 2" in str(refused)
    assert f"{models}/base/final at layers.1" in str(refused)


@pytest.mark.parametrize("moved", [False, True])
def test_other_weights_under_the_same_name_are_refused(moved, sources, models, tmp_path):
    shutil.copytree(models, tmp_path / "w")
    known = [
        {**one, "name": one["name"].replace(str(models), str(tmp_path / "w"))} for one in sources
    ]
    change_a_value(tmp_path / "w" / "sft" / "final")
    names = [tmp_path / "w" / name / "final" for name in ("base", "sft")]
    with pytest.raises(ValueError, match="is not its model 2: its weights are others"):
        check(sources if moved else known, *names)


def test_a_model_that_was_saved_again_in_another_way_is_shown_by_loading_it(
    sources, models, tmp_path
):
    model = AutoModelForCausalLM.from_pretrained(models / "base" / "final")
    shutil.copytree(models / "base" / "final", tmp_path / "again")
    (tmp_path / "again" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "again" / "pytorch_model.bin")
    check(sources, tmp_path / "again", models / "sft" / "final")


def test_two_revisions_of_one_hub_id_are_two_models(models, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folders = {c: models / n / "final" for c, n in zip(COMMITS, ("base", "sft"), strict=True)}
    put_into_hub_cache(tmp_path / "hub", "org/m", folders, main=COMMITS[0], tuned=COMMITS[1])
    loaded = load_sources(
        name_models(["org/m", "org/m"], [None, "tuned"]),
        placement=Placement("cpu"),
        dtype="float32",
    )
    assert [source.revision for source in loaded] == COMMITS
    assert loaded[0].model is not loaded[1].model
    known = json.loads(json.dumps([describe_source(one) for one in loaded]))
    assert known[0]["checkpoint"] != known[1]["checkpoint"]
    check(known, "org/m", "org/m")  # as recorded
    for revisions in (["main", "tuned"], [None, COMMITS[1]], COMMITS):
        check(known, "org/m", "org/m", revisions=revisions)
    check(known, models / "base" / "final", "org/m")  # a copy of it on this disk
    for revisions in (["tuned", "main"], ["main", "main"], [None, "gone"], [COMMITS[1], None]):
        with pytest.raises(ValueError, match=r"is not its model [12]: it"):
            check(known, "org/m", "org/m", revisions=revisions)


def test_stores_of_both_versions_are_compared_by_what_both_have(sources):
    new, old = {"sources": sources}, {"sources": older(sources)}
    for one in (new, old):
        for other in (new, old):
            assert same_sources(one, other)
            assert not same_sources(one, {"sources": other["sources"][::-1]})
            assert not same_sources(one, {"sources": other["sources"][:1]})
