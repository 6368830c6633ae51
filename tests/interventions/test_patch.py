"""Patches between two models, on a difference that is exactly known."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from sparsify_crosscoder import PatchConfig, Run, Stitching, list_differences, patch
from sparsify_crosscoder.__main__ import main
from sparsify_crosscoder.commands import train
from sparsify_crosscoder.evaluation.differences import Difference, Differences
from sparsify_crosscoder.evaluation.false_exclusives import FilterConfig
from sparsify_crosscoder.interventions.affine_maps import AffineMap
from sparsify_crosscoder.interventions.stitching import StitchingConfig

FILTER = FilterConfig(min_firings=20)


@pytest.fixture(scope="module")
def planted(twins, tmp_path_factory) -> Run:
    """A residual DFC over a model and a copy in whose block one neuron writes one direction."""
    folder = tmp_path_factory.mktemp("planted")
    model = AutoModelForCausalLM.from_pretrained(twins.parent / "base", dtype=torch.float32)
    mlp = model.model.layers[1].mlp
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        mlp.gate_proj.weight[0] = 4 * torch.randn(24, generator=generator)
        mlp.up_proj.weight[0] = mlp.gate_proj.weight[0] / 4
        # What it wrote before has the same direction, so that the whole difference has it.
        mlp.down_proj.weight[:, 0] *= 0.06 / mlp.down_proj.weight[:, 0].norm()
    model.save_pretrained(folder / "tuned")
    for file in (twins.parent / "base").glob("tokenizer*"):
        (folder / "tuned" / file.name).write_bytes(file.read_bytes())
    options = "--hookpoints layers.1 layers.1 --num_latents 64 --k 8 --pairs_per_step 256 --lr 3e-3"
    options += " --max_steps 300 --ctx_len 64 --run_name run --log_to_wandb False --device cpu"
    options += " --epochs 1000 --model_dtype float32 --arch rdfc --outlier_multiple 0"
    places = ["--save_dir", str(folder), "--cache", str(folder / "store")]
    texts = [str(twins.parent / "base"), str(twins.parent / "texts.txt")]
    train.main([*texts, "--partners", str(folder / "tuned"), *options.split(), *places])
    return Run.open(folder / "run")


@pytest.fixture(scope="module")
def differences(planted) -> Differences:
    return list_differences(planted, FILTER, device="cpu")


def with_entry(differences: Differences, one: Difference) -> Differences:
    return replace(differences, entries=[replace(one, rank=1, finding=True)])


def test_the_planted_difference_is_restored_by_its_direction_and_not_by_random_ones(
    planted, differences
):
    tuned = AutoModelForCausalLM.from_pretrained(planted.ends[1].model)
    direction = tuned.model.layers[1].mlp.down_proj.weight[:, 0].detach()
    everywhere = replace(
        differences.entries[0], latent=None, members=(), direction=direction, source=1
    )
    found = patch(planted, with_entry(differences, everywhere), PatchConfig(6, random=4))
    assert found.near and [one.source for one in found.models] == [1, 0]
    out, put_in = found.models
    for one in (out, put_in):
        # The models differ nowhere behind the hookpoint, but at first tokens, which are in no pair.
        assert one.ceiling is not None
        assert one.ceiling.share.value > 0.8 and one.kl.low > 1e-3
    (entry,) = out.entries
    whole = out.ceiling.share.value
    assert entry.latents == [] and entry.restored.share.value == pytest.approx(whole, abs=1e-3)
    assert len(entry.random) == 4 and max(entry.random) < entry.restored.share.value / 2
    assert put_in.entries == []


def test_divergences_are_those_of_the_models_themselves(planted, differences):
    found = patch(planted, with_entry(differences, differences.entries[0]), PatchConfig(4, 0))
    from sparsify_crosscoder.interventions.graft_text import text_to_graft

    text = text_to_graft(planted, planted.sources("cpu"), 4)
    models = [AutoModelForCausalLM.from_pretrained(end.model) for end in planted.ends]
    kl = []
    for ids in text.windows["input_ids_0"]:
        with torch.inference_mode():
            first, second = (m(torch.tensor([ids])).logits[0, :-1].log_softmax(-1) for m in models)
        kl.append(torch.stack([first.exp() * (first - second), second.exp() * (second - first)]))
    wanted = torch.cat([one.sum(-1) for one in kl], 1).mean(1)
    # The first is that of the host 1 from model 0.
    assert [one.kl.value for one in found.models] == pytest.approx(wanted.tolist(), rel=1e-3)


def test_all_latents_together_are_the_groups_together(planted, differences):
    found = patch(planted, with_entry(differences, differences.entries[0]), PatchConfig(4))
    for one in found.models:
        sizes = {group.name: group.latents for group in one.groups}
        assert sizes.pop("all latents") == sum(sizes.values()) == 64
        upper, lower = one.halves
        assert upper.latents == lower.latents > 0
        gap = lower.restored.kl.value - upper.restored.kl.value
        assert one.gap is not None and one.gap.value == pytest.approx(gap, abs=1e-9)
    (entry,) = found.models[0].entries
    if entry.latents:
        assert len(entry.random) == 5


def test_over_a_map_the_host_begins_with_what_the_map_carries_over(planted, differences, tmp_path):
    maps = {s: AffineMap(torch.eye(24) * 0.9, torch.zeros(24)) for s in (0, 1)}
    sources = [dict(one) for one in differences.found.crosscoder.sources]
    stitching = Stitching(maps, StitchingConfig(steps=0), sources)
    found = patch(planted, differences, PatchConfig(4, 1, 2), stitching=stitching)
    assert not found.near
    for one in found.models:
        assert one.ceiling is None and one.kl.low > 0
        assert len(one.entries) == min(1, len(differences.findings))
    assert "carried over by the map" in found.text()


def test_the_command_says_what_is_restored(planted, tmp_path, capsys):
    file = tmp_path / "patch.json"
    options = ["--texts", "3", "--entries", "1", "--random", "2", "--min_firings", "20"]
    main(["patch", str(planted.path), *options, "--device", "cpu", "--json", str(file)])
    said = capsys.readouterr().out
    assert "the whole difference at this layer" in said
    told = json.loads(file.read_text(encoding="utf-8"))
    assert [one["source"] for one in told["models"]] == [1, 0]
    assert told["models"][0]["ceiling"]["share"]["value"] > 0.8


def test_models_that_share_no_basis_need_a_map(run, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["patch", str(run), "--texts", "3", "--device", "cpu"])
    assert stop.value.code == 1
    assert "--stitching FOLDER" in capsys.readouterr().err
