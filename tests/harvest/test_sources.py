import json

import pytest
import torch
from accelerate import dispatch_model
from transformers import AutoModel, Gemma3Config

from sparsify_crosscoder.hardware import pick_device, pick_model_dtype
from sparsify_crosscoder.harvest import loading, sources
from sparsify_crosscoder.harvest.harvest import harvest_windows
from sparsify_crosscoder.harvest.hookpoints import (
    is_causal,
    layer_list,
    normalize_hookpoint,
    try_hookpoint,
)
from sparsify_crosscoder.harvest.model_name import ModelName
from sparsify_crosscoder.harvest.placement import Placement, execution_devices
from sparsify_crosscoder.harvest.sources import load_sources
from sparsify_crosscoder.harvest.weight_digests import weights_digest
from tests.support.models import KINDS, save_tiny_model, tiny_config, tiny_model
from tests.support.tokenizers import byte_level_tokenizer, metaspace_tokenizer
from tests.support.windows import random_windows

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    llama = save_tiny_model(root / "llama", "llama", byte_level_tokenizer(), width=32, layers=5)
    gpt2 = save_tiny_model(root / "gpt2", "gpt2", metaspace_tokenizer(), width=24, layers=4)
    return str(llama), str(gpt2)


def test_each_model_is_read_at_its_middle_layer_by_default(folders):
    llama, gpt2 = load_sources(folders, placement=Placement(CPU), dtype="float32")
    assert (llama.name, llama.hookpoint, llama.width) == (folders[0], "layers.2", 32)
    assert (gpt2.name, gpt2.hookpoint, gpt2.width) == (folders[1], "h.2", 24)


def test_loaded_models_have_no_head_no_gradients_and_the_saved_weights(folders):
    source = load_sources(folders, placement=Placement(CPU), dtype="float32")[0]
    saved = tiny_model("llama", causal_lm=True, layers=5, vocab_size=len(source.tokenizer))
    assert not source.model.training
    assert not any(p.requires_grad for p in source.model.parameters())
    assert not hasattr(source.model, "lm_head")
    for name, weight in source.model.state_dict().items():
        assert torch.equal(weight, saved.base_model.state_dict()[name]), name
    assert source.tokenizer.is_fast
    assert source.tokenizer("two models")["input_ids"]


def test_a_layer_number_per_source_chooses_the_hookpoints(folders):
    loaded = load_sources(folders, layers=[4, 0], placement=Placement(CPU), dtype="float32")
    assert [source.hookpoint for source in loaded] == ["layers.4", "h.0"]


def test_the_causal_lms_spelling_of_a_hookpoint_means_the_same(folders):
    loaded = load_sources(
        folders,
        hookpoints=["model.layers.1", "transformer.h.3"],
        placement=Placement(CPU),
        dtype="float32",
    )
    assert [source.hookpoint for source in loaded] == ["layers.1", "h.3"]


def test_a_hookpoint_inside_a_layer_has_its_own_width(folders):
    loaded = load_sources(
        folders,
        hookpoints=["layers.1.self_attn", "h.1.mlp.c_fc"],
        placement=Placement(CPU),
        dtype="float32",
    )
    assert [source.width for source in loaded] == [32, 4 * 24]


def test_a_model_named_twice_is_loaded_once(folders):
    llama = folders[0]
    first, second = load_sources(
        [llama, llama], layers=[1, 3], placement=Placement(CPU), dtype="float32"
    )
    assert first.model is second.model
    assert first.tokenizer is second.tokenizer
    assert (first.hookpoint, second.hookpoint) == ("layers.1", "layers.3")


def test_a_model_at_two_revisions_is_loaded_twice(folders, monkeypatch):
    asked = []

    def from_pretrained(name, revision=None, original=AutoModel.from_pretrained, **kwargs):
        asked.append((name, revision))
        return original(name, **kwargs)

    monkeypatch.setattr(AutoModel, "from_pretrained", from_pretrained)
    llama = folders[0]
    first, second = load_sources(
        [ModelName(llama, "step1000"), llama], placement=Placement(CPU), dtype="float32"
    )
    assert asked == [(llama, "step1000"), (llama, None)]
    assert first.model is not second.model


def test_fewer_than_two_models_are_refused(folders):
    with pytest.raises(ValueError, match=r"at least two models, got 1.*--partners"):
        load_sources(folders[:1], placement=Placement(CPU))


@pytest.mark.parametrize("places", [{"hookpoints": ["layers.1"]}, {"layers": [1, 2, 3]}])
def test_a_wrong_number_of_places_is_refused(folders, places):
    with pytest.raises(ValueError, match=r"2 models .* need 2 (hookpoint|layer)s .* got [13]"):
        load_sources(folders, placement=Placement(CPU), **places)


def test_hookpoints_and_layers_exclude_each_other(folders):
    with pytest.raises(ValueError, match="not both"):
        load_sources(
            folders, hookpoints=["layers.1", "h.1"], layers=[1, 1], placement=Placement(CPU)
        )


@pytest.mark.parametrize("layer", [4, -1])
def test_a_layer_out_of_range_is_refused_with_the_range(folders, layer):
    with pytest.raises(ValueError, match=rf"gpt2 has 4 layers, numbered 0 to 3; .* layer {layer}"):
        load_sources(folders, layers=[0, layer], placement=Placement(CPU))


def test_an_unknown_hookpoint_is_refused_with_close_matches(folders):
    with pytest.raises(ValueError, match=r"llama has no module 'layer.2'. Did you mean layers\.\d"):
        load_sources(folders, hookpoints=["layer.2", "h.1"], placement=Placement(CPU))


@pytest.mark.parametrize("hookpoint", ["layers", "rotary_emb", ""])
def test_a_module_that_gives_no_activations_is_refused(folders, hookpoint):
    with pytest.raises(ValueError, match=r"takes no part|one vector per token|no module ''"):
        load_sources(folders, hookpoints=[hookpoint, "h.1"], placement=Placement(CPU))


def test_an_unknown_model_is_refused_by_name(folders, tmp_path):
    missing = str(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"Cannot load the model '.*absent'(.|\n)*Check the sp"):
        load_sources([folders[0], missing], placement=Placement(CPU))


def test_a_folder_that_holds_no_model_is_refused_by_name(folders, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8}), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"Cannot load the model '{tmp_path}'"):
        load_sources([folders[0], str(tmp_path)], placement=Placement(CPU))


def test_a_model_without_tokenizer_is_refused_before_weights_are_read(folders, tmp_path):
    tiny_config("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"Cannot load the tokenizer of '{tmp_path}'"):
        load_sources([str(tmp_path), folders[1]], placement=Placement(CPU))


def test_a_tokenizer_without_character_offsets_is_refused(folders, monkeypatch):
    class Slow:
        is_fast = False

    monkeypatch.setattr(loading.AutoTokenizer, "from_pretrained", lambda *_, **__: Slow())
    with pytest.raises(ValueError, match=r"tokenizer of '.*llama' \(Slow\) gives no character off"):
        load_sources(folders, placement=Placement(CPU))


@pytest.mark.parametrize("kind", KINDS)
def test_layers_and_widths_are_found_in_every_family(kind):
    model = tiny_model(kind, layers=3)
    path, num_layers = layer_list(model)
    assert (path, num_layers) == ("h" if kind == "gpt2" else "layers", 3)
    assert try_hookpoint(model, f"{path}.1").shape[2] == 32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoders_are_found_to_be_causal(kind, dtype):
    model = tiny_model(kind).to(dtype)
    assert is_causal(try_hookpoint(model, f"{layer_list(model)[0]}.2"))


@pytest.mark.parametrize("layer", [0, 3])
def test_models_that_look_ahead_are_not_taken_for_causal(layer):
    config = tiny_config("gemma3")
    config.use_bidirectional_attention = True
    model = AutoModel.from_config(config).eval()
    assert not is_causal(try_hookpoint(model, f"layers.{layer}"))


def test_loaded_sources_know_that_they_are_causal(folders):
    assert all(
        source.causal for source in load_sources(folders, placement=Placement(CPU), dtype="float32")
    )


def test_a_head_does_not_change_what_a_hookpoint_means():
    model = tiny_model("gpt2", causal_lm=True)
    assert normalize_hookpoint(model, "transformer.h.1") == "h.1"
    assert normalize_hookpoint(model, "h.1") == "h.1"
    assert layer_list(model) == ("h", 4)
    assert try_hookpoint(model, "h.1").shape[2] == 32


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
    assert try_hookpoint(model, "language_model.layers.2").shape[2] == 32
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


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", "cuda:x", "meta", ""])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name):
    with pytest.raises(ValueError, match=rf"no device '{name}' here.* There is cpu") as raised:
        pick_device(name)
    assert len(str(raised.value)) < 250 and "\n" not in str(raised.value)


def test_the_device_asked_for_is_taken():
    assert pick_device("cpu") == pick_device(CPU) == CPU


def test_every_model_is_loaded_where_it_is_wanted(folders, monkeypatch):
    asked = []

    def from_pretrained(name, device_map=None, original=AutoModel.from_pretrained, **kwargs):
        asked.append((name, device_map))
        return original(name, **kwargs)

    monkeypatch.setattr(AutoModel, "from_pretrained", from_pretrained)
    places = ["cpu:1", "cpu:0"]
    load_sources(folders, placement=Placement(CPU, places), dtype="float32")
    assert asked == [(folders[i], {"": torch.device(places[i])}) for i in (0, 1)]
    load_sources(folders, placement=Placement(CPU, device_map="auto"), dtype="float32")
    assert asked[2:] == [(folder, "auto") for folder in folders]


@pytest.mark.parametrize(
    "places, complaint",
    [
        ({"devices": ["cpu"]}, r"2 models .* need 2 devices in the same order, got 1: cpu"),
        ({"devices": ["cpu", "cuda:99"]}, "no device 'cuda:99' here"),
        ({"devices": ["cpu", "cpu"], "device_map": "auto"}, "not both"),
        ({"device_map": "best"}, "Unknown device_map 'best': use auto, balanced"),
    ],
)
def test_wrong_places_are_refused_before_anything_is_loaded(
    folders, places, complaint, monkeypatch
):
    monkeypatch.setattr(sources, "load_config", None)
    with pytest.raises(ValueError, match=complaint):
        load_sources(folders, placement=Placement(CPU, **places))


def test_sources_that_share_a_model_share_its_device(folders):
    with pytest.raises(ValueError, match=r"llama is loaded once .* both cpu and cpu:0"):
        load_sources([folders[0]] * 2, placement=Placement(CPU, ["cpu", "cpu:0"]))
    shared, twin = load_sources(
        [folders[0]] * 2, placement=Placement(CPU, ["cpu"] * 2), dtype="float32"
    )
    assert shared.model is twin.model


@pytest.mark.parametrize("device_map", ["auto", "balanced", "sequential"])
def test_a_device_map_changes_no_weight(folders, device_map):
    plain = load_sources(folders, placement=Placement(CPU), dtype="float32")
    spread = load_sources(folders, placement=Placement(CPU, device_map=device_map), dtype="float32")
    for one, other in zip(plain, spread, strict=True):
        assert (one.hookpoint, one.width) == (other.hookpoint, other.width)
        assert weights_digest(one.model) == weights_digest(other.model)


def test_missing_packages_are_named_with_the_command_that_brings_them(folders, monkeypatch):
    monkeypatch.setattr(sources, "is_accelerate_available", lambda: False)
    with pytest.raises(ValueError, match="pip install accelerate"):
        load_sources(folders, placement=Placement(CPU, device_map="auto"))
    monkeypatch.setattr(sources, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        load_sources(folders, placement=Placement(CPU), load_in_8bit=True)


def test_8_bit_models_are_harvested_and_are_like_the_full_ones(folders):
    pytest.importorskip("bitsandbytes")
    windows = random_windows(20, vocab_size=250)
    found = {}
    for bits in (8, 32):
        dtype = "auto" if bits == 8 else "float32"
        loaded = load_sources(
            folders, placement=Placement(CPU), dtype=dtype, load_in_8bit=bits == 8
        )
        digests = [weights_digest(source.model) for source in loaded]
        found[bits], _ = harvest_windows(loaded, windows, range(20), batch_size=4)
        assert [weights_digest(source.model) for source in loaded] == digests  # also once used
    for eight, full in zip(found[8], found[32], strict=True):
        assert eight.dtype == torch.float16
        likeness = torch.nn.functional.cosine_similarity(eight.float(), full)
        assert likeness.median() > 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_the_digest_is_that_of_the_weights_wherever_they_are(kind, tmp_path):
    model = tiny_model(kind)
    digest = weights_digest(model)
    assert weights_digest(tiny_model(kind)) == digest
    assert weights_digest(tiny_model(kind, causal_lm=True).base_model) == weights_digest(
        tiny_model(kind, causal_lm=True)
    )
    assert weights_digest(tiny_model(kind, seed=1)) != digest
    assert weights_digest(tiny_model(kind).bfloat16()) != digest
    path, _ = layer_list(model)
    places = {name: "cpu" if name != path else "disk" for name, _ in model.named_children()}
    offloaded = dispatch_model(tiny_model(kind), places, offload_dir=tmp_path, main_device="cpu")
    assert next(offloaded.get_submodule(path).parameters()).device.type == "meta"
    assert weights_digest(offloaded) == digest
    assert execution_devices(offloaded) == {CPU}


UP = "layers.3.mlp.up_proj"


def test_the_digest_reads_the_ends_of_every_weight_and_all_of_a_small_one():
    model = tiny_model("llama")
    digests = {weights_digest(model)}
    changes = [
        ("norm", 17),
        ("embed_tokens", 0),
        ("embed_tokens", -1),
        ("layers.3.mlp.up_proj", -1),
    ]
    for name, position in changes:
        with torch.no_grad():
            model.get_submodule(name).weight.view(-1)[position] += 1
        digests.add(weights_digest(model))
    assert len(digests) == 5


def test_an_8_bit_digest_depends_on_the_scales():
    model = tiny_model("llama", layers=1)
    eight = torch.nn.Parameter(torch.ones(32, 32, dtype=torch.int8), requires_grad=False)
    model.layers[0].self_attn.q_proj.weight = eight
    digests = set()
    for scale in (1.0, 2.0):
        eight.SCB = torch.full((32,), scale)
        digests.add(weights_digest(model))
    assert len(digests) == 2
