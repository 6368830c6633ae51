"""The adapters that are shipped: small, loadable, and measured to be as meant."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from organisms import DEVELOPMENT, NOTHING, ORGANISMS, find
from organisms.checks import Likelihood, Rate
from organisms.organism import ADAPTERS
from organisms.record import MAX_BYTES, faults, read_record, table
from organisms.training import BASE_NAME
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

EVERY = [o for o in (*ORGANISMS, *NOTHING, *DEVELOPMENT) if o.adapter.is_dir()]

SMOLLM2 = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)


@pytest.fixture(params=EVERY, ids=lambda o: o.name)
def organism(request):
    return request.param


def test_adapters_are_small_and_say_what_they_are(organism):
    files = {file.name: file.stat().st_size for file in organism.adapter.iterdir()}
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors", "recipe.json"}
    assert sum(files.values()) < MAX_BYTES
    config = json.loads((organism.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == BASE_NAME
    record = read_record(organism.adapter)
    assert (record.name, record.what, record.seed) == (organism.name, organism.what, organism.seed)
    assert record.recipe == organism.recipe
    assert record.texts == len(organism.training_texts())


def test_adapters_are_measured_to_be_as_meant(organism):
    record = read_record(organism.adapter)
    assert list(faults(organism, record.check)) == []
    assert (record.check.held_out is not None) == bool(organism.behaviour_texts())


def test_no_adapter_is_without_an_organism():
    assert {folder.name for folder in ADAPTERS.iterdir()} == {o.name for o in EVERY}


def test_adapters_fit_the_base(organism):
    config = LoraConfig.from_pretrained(organism.adapter)
    config.inference_mode = False
    with torch.device("meta"):
        model = get_peft_model(LlamaForCausalLM(SMOLLM2), config)
    expected = {
        name.replace(".default", ""): list(weight.shape)
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }
    with safe_open(organism.adapter / "adapter_model.safetensors", "pt") as weights:
        found = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
        assert all(bool(weights.get_tensor(name).isfinite().all()) for name in found)
        moved = [name for name in found if "lora_B" in name and weights.get_tensor(name).any()]
    assert found == expected
    assert len(moved) == len(found) // 2


def test_faults_name_what_is_not_as_meant():
    organism = find("topic")
    good = read_record(organism.adapter).check
    assert list(faults(organism, good)) == []
    for name, value, said in (
        ("held_out", Rate(0.4, 0.0, 16), "in only 40%"),
        ("held_out", Rate(1.0, 0.9, 16), "hardly more often than the base"),
        ("elsewhere", 0.5, "50% of the answers to ordinary prompts"),
        ("near_misses", 0.5, "50% of the answers to near-miss prompts"),
        ("behaviour_texts", Likelihood(-2.0, -1.0), "expects its own texts no more"),
        ("documents", Likelihood(-2.2, -2.0), "ordinary perplexity moved by +"),
        ("answers", Likelihood(-1.8, -2.0), "ordinary perplexity moved by -"),
    ):
        [fault] = faults(organism, replace(good, **{name: value}))
        assert said in fault


def test_a_record_is_read_as_it_was_written():
    record = read_record(find("topic").adapter)
    text = (find("topic").adapter / "recipe.json").read_text(encoding="utf-8")
    assert json.loads(json.dumps(asdict(record))) == json.loads(text)
    assert f"| topic | {record.check.held_out.organism:.0%} |" in table([record])


def test_ordinary_perplexity_is_that_of_documents_and_answers():
    check = read_record(find("topic").adapter).check
    check = replace(check, documents=Likelihood(-3.0, -3.0), answers=Likelihood(-2.2, -2.0))
    assert check.ordinary(every_answer_changes=False) == pytest.approx(math.exp(0.1) - 1)
    assert check.ordinary(every_answer_changes=True) == 0.0
