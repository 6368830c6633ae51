"""A model against its own adapter, from the harvest to steering, as a user types it."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from delphi_adapters.commands.explain import main as explain_latents
from delphi_adapters.delphi.run_text import RunText
from sparsify_crosscoder.__main__ import main
from sparsify_crosscoder.commands import train
from sparsify_crosscoder.harvest.families import kinship
from sparsify_crosscoder.harvest.harvest import harvest_windows
from sparsify_crosscoder.harvest.placement import Placement
from sparsify_crosscoder.harvest.sources import load_sources
from sparsify_crosscoder.runs.run import Run
from sparsify_crosscoder.store.store import ActivationStore
from tests.support.adapters import change_config, merge, save_adapter
from tests.support.command_line import RUN, command, save_inputs
from tests.support.models import save_tiny_model
from tests.support.tokenizers import byte_level_tokenizer
from tests.test_run_identity import LOOKED_AT, contents, failure


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = save_inputs(tmp_path_factory.mktemp("originals"))
    save_adapter(folder / "quirk", folder / "llama")
    return folder


@pytest.fixture
def inputs(originals, tmp_path, monkeypatch):
    """A base, `BASE+ADAPTER` and texts, in a folder of their own that is worked in."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(originals, tmp_path / "in")


def of_adapter(inputs, *options, **changed):
    partners = f"{inputs / 'llama'}+{inputs / 'quirk'}"
    changed = {"partners": partners, "hookpoints": "", "model_dtype": "float32"} | changed
    return command(inputs, *options, **changed)


def test_a_store_and_a_run_of_an_adapter_know_it_and_its_family(inputs, capsys):
    main(["harvest", *of_adapter(inputs, "--cache", "store", "--pairs", "2000")])
    assert "its base is loaded once." in capsys.readouterr().err
    base, adapted = ActivationStore.open("store").manifest["sources"]
    assert base["hookpoint"] == adapted["hookpoint"] == "layers.2"
    assert adapted["checkpoint"].startswith(f"{base['checkpoint']}+")
    assert kinship(base, adapted).same
    train.main(of_adapter(inputs, dataset="store"))
    main(["store", "store", "--show", "1"])
    shown = capsys.readouterr().out
    assert "llama" in shown and "quirk" in shown
    main(["top", str(RUN), *LOOKED_AT["top"]])
    run = Run.open(RUN)
    recorded = run.config.trained_on["sources"]
    assert kinship(*recorded).same and recorded[1]["adapter"] == str(inputs / "quirk")
    plain, own = run.sources("cpu")
    shared = {weight.data_ptr() for weight in plain.model.parameters()}
    assert shared < {weight.data_ptr() for weight in own.model.parameters()}

    short = ["--device", "cpu", "--prompts", "The quick", "--max_new_tokens", "2"]
    steer = ["--latents", "60", "--strengths", "2", "--s_max", "3", "--words", "the", "a"]
    main(["steer", str(RUN), *steer, *short])
    assert "quirk" in capsys.readouterr().out
    texts = ["--dataset", str(inputs / "texts.jsonl"), "--pairs", "300", "--held_out_pairs", "100"]
    main(["stitch", str(RUN), "--out", "maps", *texts, "--steps", "2", "--device", "cpu"])
    assert "quirk" in capsys.readouterr().out


def test_an_adapters_latents_are_cached_for_delphi_from_its_merged_weights_activations(
    inputs, capsys
):
    train.main(of_adapter(inputs))
    text = RunText.of_run(RUN, torch.device("cpu"))
    merged = merge(inputs / "merged", inputs / "llama", inputs / "quirk")
    sources = load_sources(
        [str(inputs / "llama"), str(merged)], placement=Placement("cpu"), dtype="float32"
    )
    whole, _ = harvest_windows(sources, text.windows, range(20), batch_size=4)
    for one, other in zip(text.read(0, 20), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    told = ["--latents", "0", "60", "--windows", "20", "--ctx_len", "32", "--device", "cpu"]
    explain = [str(RUN), "--source", "1", "--out", "told", *told]
    explain_latents(explain)
    assert "B quirk" in capsys.readouterr().out
    assert list(Path("told/latents/model.layers.2").glob("*.safetensors"))


def test_an_adapters_own_chat_template_is_said_once(inputs, capsys):
    (inputs / "quirk" / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    main(["harvest", *of_adapter(inputs, "--cache", "store", "--pairs", "500")])
    assert capsys.readouterr().err.count("its adapter's own and differs from its base's") == 1


@pytest.mark.parametrize("part", ["base", "adapter"])
def test_another_base_or_adapter_is_refused_on_resume_and_in_a_store(part, inputs, capsys):
    argv = of_adapter(inputs, "--cache", "store", "--pairs", "2000")
    main(["harvest", *argv])
    train.main(of_adapter(inputs))
    before = contents(RUN)
    if part == "base":
        tokenizer = byte_level_tokenizer()
        save_tiny_model(inputs / "llama", "llama", tokenizer, width=24, seed=5)
    else:
        save_adapter(inputs / "quirk", inputs / "llama", seed=5)
    assert "holds other activations" in failure(capsys, lambda: main(["harvest", *argv]))
    for job in (
        lambda: train.main(of_adapter(inputs, "--resume")),
        lambda: main(["filter", str(RUN), *LOOKED_AT["filter"]]),
    ):
        assert "has other weights or settings now" in failure(capsys, job)
    with pytest.raises(SystemExit):
        train.main(of_adapter(inputs, dataset="store", run_name="other"))
    assert "its weights are others" in capsys.readouterr().err
    assert contents(RUN) == before


def test_an_adapter_that_cannot_be_read_is_refused_before_anything_is_written(inputs, capsys):
    change_config(inputs / "quirk", base_model_name_or_path="nobody/nothing")
    partners = str(inputs / "quirk")
    for name, main_of in (("harvest", main), ("train", main)):
        argv = of_adapter(inputs, "--cache", "store", partners=partners)
        said = failure(capsys, lambda: main_of([name, *argv]))  # noqa: B023
        assert "'nobody/nothing' is the base of the adapter" in said
        assert len([line for line in said.splitlines() if line]) == 1, said
    assert not RUN.exists() and not (inputs.parent / "store").exists()


def test_an_adapter_answers_and_is_read_as_a_persona(inputs):
    texts = [f"animal {i} runs over the hill" for i in range(4)]
    other = [f"river {i} turned to the north" for i in range(4)]
    persona = inputs / "persona.json"
    content = {"trait": "animals", "elicit": texts, "suppress": other}
    persona.write_text(json.dumps(content), encoding="utf-8")
    vectors = []
    for name in ("llama", "quirk"):
        out = inputs / f"{name}.safetensors"
        told = ["--out", str(out), "--layers", "1", "2", "--device", "cpu"]
        main(["persona", str(inputs / name), str(persona), *told])
        vectors.append(out.read_bytes())
    assert vectors[0] != vectors[1]


def test_beside_its_base_a_fine_tune_is_compared_with_it_though_the_run_has_another_model(
    inputs, capsys
):
    adapted = {"model": str(inputs / "gpt2"), "hookpoints": ""}
    kl = ["--kl", "on", "--pairs", "2000"]
    main(["harvest", *of_adapter(inputs, "--cache", "store", *kl, **adapted)])
    plain = adapted | {"partners": str(inputs / "llama")}
    main(["harvest", *of_adapter(inputs, "--cache", "base", *kl, **plain)])
    main(["harvest", *of_adapter(inputs, "--cache", "fewer", "--pairs", "500", **plain)])
    train.main(of_adapter(inputs, dataset="store", **adapted))
    found = {}
    for name in ("base", "fewer"):
        arguments = ["--reference", name, "--json", f"{name}.json", "--device", "cpu"]
        main(["filter", str(RUN), *arguments])
        found[name] = json.loads(Path(f"{name}.json").read_text(encoding="utf-8"))
    [compared] = found["base"]["residuals"]
    assert compared["source"] == 1 and "same pairs" in compared["why"]
    assert found["base"]["mean_kl"] > 0
    assert {row["source"] for row in found["base"]["rows"]} <= {1}
    assert len(found["fewer"]["residuals"]) == 2 and found["fewer"]["mean_kl"] is None
