"""Models are told apart by what their weight files hold, and shown under names that differ."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sparsify_crosscoder.harvest.model_identity import (
    checkpoint_digest,
    same_name,
    short_names,
    source_names,
)
from sparsify_crosscoder.harvest.weight_digests import sampled_digest, weights_digest
from tests.support.models import change_a_value, put_into_hub_cache, save_tiny_model, tiny_model
from tests.support.tokenizers import byte_level_tokenizer

COMMITS = ["a" * 40, "b" * 40]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "final"
    return save_tiny_model(folder, "llama", byte_level_tokenizer(), width=16, layers=2)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_checkpoint_is_the_same_wherever_it_lies_and_however_it_is_divided(saved, tmp_path, hub):
    digest = checkpoint_digest(str(saved))
    assert digest is not None
    shutil.copytree(saved, tmp_path / "moved")
    assert checkpoint_digest(str(tmp_path / "moved")) == digest
    model = AutoModelForCausalLM.from_pretrained(saved)
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert checkpoint_digest(str(tmp_path / "shards")) == digest
    put_into_hub_cache(hub, "org/final", {COMMITS[0]: saved})
    assert checkpoint_digest("org/final") == checkpoint_digest("org/final", COMMITS[0]) == digest
    assert checkpoint_digest("org/final", COMMITS[1]) is None


@pytest.mark.parametrize("change", ["one value", "a setting", "a name", "the dtype"])
def test_anything_else_in_a_checkpoint_is_another(change, saved, tmp_path):
    other = tmp_path / "final"
    shutil.copytree(saved, other)
    if change == "one value":
        change_a_value(other, 1e-3)
    elif change == "a setting":
        config = json.loads((other / "config.json").read_text(encoding="utf-8"))
        config["rms_norm_eps"] = 0.1
        (other / "config.json").write_text(json.dumps(config), encoding="utf-8")
    elif change == "a name":
        file = other / "model.safetensors"
        file.write_bytes(file.read_bytes().replace(b"layers.1.mlp.up", b"layers.1.mlp.op"))
    else:
        AutoModelForCausalLM.from_pretrained(saved, dtype=torch.bfloat16).save_pretrained(other)
    assert checkpoint_digest(str(other)) not in (None, checkpoint_digest(str(saved)))


def test_what_another_version_writes_beside_a_model_does_not_count(saved, tmp_path):
    other = tmp_path / "final"
    shutil.copytree(saved, other)
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(
        json.dumps({**config, "transformers_version": "4.0"}), encoding="utf-8"
    )
    (other / "README.md").write_text("mine", encoding="utf-8")
    assert checkpoint_digest(str(other)) == checkpoint_digest(str(saved))


def test_where_there_are_no_weights_there_is_no_digest(tmp_path, hub):
    for name in (str(tmp_path), str(tmp_path / "nothing"), "org/nothing", "no//name"):
        assert checkpoint_digest(name) is None


@pytest.mark.parametrize("damage", ["header", "config", "index"])
def test_damaged_files_are_named(damage, saved, tmp_path):
    other = tmp_path / "final"
    shutil.copytree(saved, other)
    file = other / {"config": "config.json"}.get(damage, "model.safetensors")
    if damage == "index":
        file.unlink()
        file = other / "model.safetensors.index.json"
    file.write_bytes(b"\xff" * 20)
    with pytest.raises(ValueError, match=f"{file.name}' is damaged"):
        checkpoint_digest(str(other))


def test_a_loaded_models_digest_is_of_all_its_values():
    model = tiny_model("llama", vocab_size=512)
    before, sampled = weights_digest(model), sampled_digest(model)
    with torch.no_grad():
        model.embed_tokens.weight.view(-1)[5] += 1e-3
    assert weights_digest(model) != before
    assert sampled_digest(model) == sampled


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["/w/base/final", "/w/sft/final"], ["base/final", "sft/final"]),
        (["/w/a/x/final", "/w/b/x/final", "org/other"], ["a/x/final", "b/x/final", "other"]),
        (["org/model", "other/model"], ["org/model", "other/model"]),
        (["/w/final/", "final"], ["w/final", "final"]),
        (["/w/final", "/w/./final"], ["final", "final"]),
    ],
)
def test_the_shortest_ends_of_paths_that_tell_them_apart_are_shown(names, shown):
    assert short_names(names) == shown


def test_revisions_and_hookpoints_are_shown_where_names_are_equal():
    def source(revision, hookpoint):
        return {"name": "org/m", "revision": revision, "hookpoint": hookpoint}

    assert source_names([source(COMMITS[0], "h.1"), source(COMMITS[1], "h.1")]) == [
        "m@aaaaaaaa",
        "m@bbbbbbbb",
    ]
    assert source_names([source(None, "h.1"), source(None, "h.2")]) == ["m h.1", "m h.2"]
    assert source_names([source(None, "h.1"), {**source(None, "h.1"), "name": "n"}]) == ["m", "n"]


def test_one_place_may_be_named_in_several_ways(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "final").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for name in ("a/final", "./a/final", "a/final/", "a/../a/final", "link/final"):
        assert same_name(name, str(tmp_path / "a" / "final"))
    assert same_name("org/final", "org/final")
    for name in ("final", "b/final", "org/final"):
        assert not same_name(name, str(tmp_path / "a" / "final"))


def test_a_file_that_is_no_safetensors_counts_as_a_whole(saved, tmp_path):
    other = tmp_path / "final"
    shutil.copytree(saved, other)
    torch.save(load_file(other / "model.safetensors"), other / "pytorch_model.bin")
    (other / "model.safetensors").unlink()
    digest = checkpoint_digest(str(other))
    assert digest is not None
    with open(other / "pytorch_model.bin", "ab") as file:
        file.write(b"x")
    assert checkpoint_digest(str(other)) != digest
