import json

import pytest
import torch
from models_for_tests import KINDS, save_tiny_model, tiny_config, tiny_model
from tokenizers_for_tests import byte_level_tokenizer, metaspace_tokenizer
from transformers import AutoModel, Gemma3Config

from sparsify_crosscoder.activations import sources
from sparsify_crosscoder.activations.sources import (
    hookpoint_width,
    layer_list,
    load_sources,
    normalize_hookpoint,
    pick_device,
    pick_model_dtype,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    llama = save_tiny_model(root / "llama", "llama", byte_level_tokenizer(), width=32, layers=5)
    gpt2 = save_tiny_model(root / "gpt2", "gpt2", metaspace_tokenizer(), width=24, layers=4)
    return str(llama), str(gpt2)


def test_each_model_is_read_at_its_middle_layer_by_default(folders):
    llama, gpt2 = load_sources(folders, device=CPU, dtype="float32")
    assert (llama.name, llama.hookpoint, llama.width) == (folders[0], "layers.2", 32)
    assert (gpt2.name, gpt2.hookpoint, gpt2.width) == (folders[1], "h.2", 24)


def test_loaded_models_have_no_head_no_gradients_and_the_saved_weights(folders):
    source = load_sources(folders, device=CPU, dtype="float32")[0]
    saved = tiny_model("llama", causal_lm=True, layers=5, vocab_size=len(source.tokenizer))
    assert not source.model.training
    assert not any(p.requires_grad for p in source.model.parameters())
    assert not hasattr(source.model, "lm_head")
    for name, weight in source.model.state_dict().items():
        assert torch.equal(weight, saved.base_model.state_dict()[name]), name
    assert source.tokenizer.is_fast
    assert source.tokenizer("two models")["input_ids"]


def test_a_layer_number_per_source_chooses_the_hookpoints(folders):
    loaded = load_sources(folders, layers=[4, 0], device=CPU, dtype="float32")
    assert [source.hookpoint for source in loaded] == ["layers.4", "h.0"]


def test_the_causal_lms_spelling_of_a_hookpoint_means_the_same(folders):
    loaded = load_sources(
        folders, hookpoints=["model.layers.1", "transformer.h.3"], device=CPU, dtype="float32"
    )
    assert [source.hookpoint for source in loaded] == ["layers.1", "h.3"]


def test_a_hookpoint_inside_a_layer_has_its_own_width(folders):
    loaded = load_sources(
        folders, hookpoints=["layers.1.self_attn", "h.1.mlp.c_fc"], device=CPU, dtype="float32"
    )
    assert [source.width for source in loaded] == [32, 4 * 24]


def test_a_model_named_twice_is_loaded_once(folders):
    llama = folders[0]
    first, second = load_sources([llama, llama], layers=[1, 3], device=CPU, dtype="float32")
    assert first.model is second.model
    assert first.tokenizer is second.tokenizer
    assert (first.hookpoint, second.hookpoint) == ("layers.1", "layers.3")


def test_the_revision_belongs_to_the_first_model_alone(folders, monkeypatch):
    asked = []

    def from_pretrained(name, revision=None, original=AutoModel.from_pretrained, **kwargs):
        asked.append((name, revision))
        return original(name, **kwargs)

    monkeypatch.setattr(AutoModel, "from_pretrained", from_pretrained)
    llama = folders[0]
    first, second = load_sources([llama, llama], device=CPU, dtype="float32", revision="step1000")
    assert asked == [(llama, "step1000"), (llama, None)]
    assert first.model is not second.model


def test_fewer_than_two_models_are_refused(folders):
    with pytest.raises(ValueError, match=r"at least two models, got 1.*--partners"):
        load_sources(folders[:1], device=CPU)


@pytest.mark.parametrize("places", [{"hookpoints": ["layers.1"]}, {"layers": [1, 2, 3]}])
def test_a_wrong_number_of_places_is_refused(folders, places):
    with pytest.raises(ValueError, match=r"2 models .* need 2 (hookpoint|layer)s .* got [13]"):
        load_sources(folders, device=CPU, **places)


def test_hookpoints_and_layers_exclude_each_other(folders):
    with pytest.raises(ValueError, match="not both"):
        load_sources(folders, hookpoints=["layers.1", "h.1"], layers=[1, 1], device=CPU)


@pytest.mark.parametrize("layer", [4, -1])
def test_a_layer_out_of_range_is_refused_with_the_range(folders, layer):
    with pytest.raises(ValueError, match=rf"gpt2 has 4 layers, numbered 0 to 3; .* layer {layer}"):
        load_sources(folders, layers=[0, layer], device=CPU)


def test_an_unknown_hookpoint_is_refused_with_close_matches(folders):
    with pytest.raises(ValueError, match=r"llama has no module 'layer.2'. Did you mean layers\.\d"):
        load_sources(folders, hookpoints=["layer.2", "h.1"], device=CPU)


@pytest.mark.parametrize("hookpoint", ["layers", "rotary_emb", ""])
def test_a_module_that_gives_no_activations_is_refused(folders, hookpoint):
    with pytest.raises(ValueError, match=r"takes no part|one vector per token|no module ''"):
        load_sources(folders, hookpoints=[hookpoint, "h.1"], device=CPU)


def test_an_unknown_model_is_refused_by_name(folders, tmp_path):
    missing = str(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"Cannot load the model '.*absent'(.|\n)*Check the sp"):
        load_sources([folders[0], missing], device=CPU)


def test_a_folder_that_holds_no_model_is_refused_by_name(folders, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8}))
    with pytest.raises(ValueError, match=rf"Cannot load the model '{tmp_path}'"):
        load_sources([folders[0], str(tmp_path)], device=CPU)


def test_a_model_without_tokenizer_is_refused_before_weights_are_read(folders, tmp_path):
    tiny_config("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"Cannot load the tokenizer of '{tmp_path}'"):
        load_sources([str(tmp_path), folders[1]], device=CPU)


def test_a_tokenizer_without_character_offsets_is_refused(folders, monkeypatch):
    class Slow:
        is_fast = False

    monkeypatch.setattr(sources.AutoTokenizer, "from_pretrained", lambda *_, **__: Slow())
    with pytest.raises(ValueError, match=r"tokenizer of '.*llama' \(Slow\) gives no character off"):
        load_sources(folders, device=CPU)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_and_widths_are_found_in_every_family(kind):
    model = tiny_model(kind, layers=3)
    path, num_layers = layer_list(model)
    assert (path, num_layers) == ("h" if kind == "gpt2" else "layers", 3)
    assert hookpoint_width(model, f"{path}.1") == 32


def test_a_head_does_not_change_what_a_hookpoint_means():
    model = tiny_model("gpt2", causal_lm=True)
    assert normalize_hookpoint(model, "transformer.h.1") == "h.1"
    assert normalize_hookpoint(model, "h.1") == "h.1"
    assert layer_list(model) == ("h", 4)
    assert hookpoint_width(model, "h.1") == 32


def test_a_multimodal_models_layers_are_its_language_models():
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config=tiny_config("gemma3").to_dict(), vision_config=vision)
    model = AutoModel.from_config(config).eval()
    assert layer_list(model) == ("language_model.layers", 4)
    assert hookpoint_width(model, "language_model.layers.2") == 32
    hookpoint = normalize_hookpoint(model, "model.language_model.layers.2")
    assert hookpoint == "language_model.layers.2"


def test_the_dtype_asked_for_is_taken():
    assert pick_model_dtype(CPU, "float16") == torch.float16
    assert pick_model_dtype(CPU, torch.float32) == torch.float32
    assert pick_model_dtype(CPU, load_in_8bit=True) == torch.float16
    with pytest.raises(ValueError, match="Unknown dtype 'bf17'"):
        pick_model_dtype(CPU, "bf17")
    with pytest.raises(ValueError, match="Unknown dtype 'int8'"):
        pick_model_dtype(CPU, "int8")


@pytest.mark.parametrize(
    ("avx512", "amx", "dtype"),
    [(True, False, "bfloat16"), (False, True, "bfloat16"), (False, False, "float32")],
)
def test_a_cpu_runs_in_bfloat16_only_where_it_does_so_natively(monkeypatch, avx512, amx, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert pick_model_dtype("cpu") == getattr(torch, dtype)


def test_a_cpu_of_unknown_abilities_runs_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert pick_model_dtype("cpu") == torch.float32
    assert pick_model_dtype("mps") == torch.float32


def test_each_process_under_torchrun_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert pick_device() == torch.device("cuda", 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device() == CPU
