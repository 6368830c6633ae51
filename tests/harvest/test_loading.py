import json
import logging
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BloomConfig,
    FalconConfig,
    Gemma3Config,
    GptOssConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MptConfig,
    RobertaConfig,
)

from sparsify_crosscoder.harvest import loading
from sparsify_crosscoder.harvest.harvest import harvest_windows
from sparsify_crosscoder.harvest.limits import check_windows, context_length
from sparsify_crosscoder.harvest.loading import (
    ModelError,
    load_config,
    load_pretrained,
    load_tokenizer,
)
from sparsify_crosscoder.harvest.model_name import ModelName
from sparsify_crosscoder.harvest.placement import Placement
from sparsify_crosscoder.harvest.sources import load_language_model, load_sources
from sparsify_crosscoder.interventions.generation import Answering, Sampling, generate
from sparsify_crosscoder.runs.config import load_run_config
from sparsify_crosscoder.runs.options import parse_run_config
from tests.support.models import save_tiny_model, tiny_config, tiny_model
from tests.support.tokenizers import byte_level_tokenizer

CPU = torch.device("cpu")
UP = "model.layers.0.mlp.up_proj.weight"
VISION: dict[str, Any] = {
    **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return save_tiny_model(
        tmp_path_factory.mktemp("model") / "llama", "llama", byte_level_tokenizer(), layers=2
    )


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "llama-b")


def load(folder, auto=AutoModel, **options):
    return load_pretrained(ModelName(str(folder)), auto, place=CPU, dtype=torch.float32, **options)


def refusal(folder, load=load, **options):
    """The one line with which a model is refused, which names it."""
    with pytest.raises(ModelError) as raised:
        load(folder, **options)
    line = str(raised.value)
    assert str(folder) in line and "\n" not in line and len(line) < 1200
    return line


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def write_weights(folder, weights):
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder, **values):
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | values
    config = {key: value for key, value in config.items() if value is not ...}
    file.write_text(json.dumps(config), encoding="utf-8")


@torch.inference_mode()
def hidden_states(model):
    ids = torch.arange(24)[None] * 5 % 120 + 1
    return model(input_ids=ids, output_hidden_states=True).hidden_states


def assert_loads_as_transformers_does(folder):
    expected = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    loaded = load(folder)
    for one, other in zip(hidden_states(loaded), hidden_states(expected), strict=True):
        assert one.isfinite().all() and torch.equal(one, other)
    return loaded


# Weights under other names


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForCausalLM])
@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod."]
)
def test_what_a_wrapper_put_before_every_name_is_taken_off(folder, prefix, auto):
    weights = weights_of(folder)
    write_weights(folder, {f"{prefix}{name}": value for name, value in weights.items()})
    loaded = load(folder, auto).base_model.state_dict()
    for name, value in loaded.items():
        assert torch.equal(value, weights[f"model.{name}"]), name


def test_a_prefix_over_shards_and_over_a_model_without_head_is_taken_off(folder):
    weights = weights_of(folder)
    renamed = {
        f"_orig_mod.{name.removeprefix('model.')}": value
        for name, value in weights.items()
        if name != "lm_head.weight"
    }
    (folder / "model.safetensors").unlink()
    write_shards(folder, renamed)
    assert torch.equal(load(folder).layers[0].mlp.up_proj.weight, weights[UP])


def write_shards(folder, weights):
    places = {}
    for number, part in enumerate((list(weights)[::2], list(weights)[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({n: weights[n] for n in part}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")
    return index, places


@pytest.mark.parametrize(
    ("rename", "named"),
    [
        (lambda name: f"wrapped.{name}", r"begin with 'wrapped\.'"),
        (lambda name: f"_orig_mod.{name}" if "layers.1" in name else name, "'_orig_mod.'"),
        (lambda name: f"module.{name}" if "embed" in name else name, "'module.'"),
        (lambda name: name.replace("up_proj", "up"), "up_proj"),
    ],
)
def test_weights_under_unknown_or_mixed_names_are_refused_by_name(folder, rename, named):
    write_weights(folder, {rename(name): value for name, value in weights_of(folder).items()})
    line = refusal(folder)
    assert "MISSING" in line and named.replace("\\", "") in line


# Weights that are not there, or for which there is no place


@pytest.mark.parametrize(
    ("gone", "auto"),
    [
        ("model.layers.1.", AutoModel),
        ("model.norm", AutoModel),
        ("model.embed_tokens", AutoModel),
        ("lm_head", AutoModelForCausalLM),
    ],
)
def test_a_missing_weight_is_never_random(folder, gone, auto):
    weights = weights_of(folder)
    write_weights(folder, {n: value for n, value in weights.items() if not n.startswith(gone)})
    line = refusal(folder, auto=auto)
    assert "MISSING" in line and gone.removeprefix("model.") in line


@pytest.mark.parametrize(
    "extra",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.2.input_layernorm.weight",
        "model.layers.1.self_attn.q_norm.weight",
        "model.layers.0.mlp.up_proj.weight_scale",
        "layers.0.mlp.up_proj.weight_scale_inv",
    ],
)
def test_weights_without_a_place_in_the_layers_are_refused(folder, extra):
    write_weights(folder, weights_of(folder) | {extra: torch.ones(3)})
    line = refusal(folder)
    assert "UNEXPECTED" in line and extra in line


@pytest.mark.parametrize(
    "extra",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.position_ids",
        "model.layers.1.self_attn.k_scale",
        "v_head.weight",
        "score.weight",
        "model.vision_tower.patch.weight",
        "mtp.layers.0.norm.weight",
    ],
)
def test_extras_that_reading_does_not_need_are_no_alarm(folder, extra):
    weights = weights_of(folder)
    write_weights(folder, weights | {extra: torch.ones(3)})
    assert torch.equal(load(folder).layers[0].mlp.up_proj.weight, weights[UP])


def test_layers_that_predict_ahead_are_no_alarm(tmp_path):
    folder = save_tiny_model(tmp_path / "deepseek", "deepseek", byte_level_tokenizer(), layers=2)
    more = {"model.layers.2.eh_proj.weight": torch.ones(3)}
    write_weights(folder, weights_of(folder) | more)
    change_config(folder, num_nextn_predict_layers=0)
    assert "UNEXPECTED" in refusal(folder)
    change_config(folder, num_nextn_predict_layers=1)
    load(folder)


def test_a_head_that_is_tied_or_not_read_may_be_absent(folder):
    weights = weights_of(folder)
    del weights["lm_head.weight"]
    write_weights(folder, weights)
    load(folder)
    assert "saved without its head" in refusal(folder, auto=AutoModelForCausalLM)
    change_config(folder, tie_word_embeddings=True)
    head = load(folder, AutoModelForCausalLM).get_output_embeddings().weight
    assert torch.equal(head, weights["model.embed_tokens.weight"])


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "_fsdp_wrapped_module."])
def test_a_wrapper_of_single_layers_is_named(folder, wrapper):
    weights = weights_of(folder)
    write_weights(
        folder, {n.replace("layers.0.", f"layers.0.{wrapper}"): weights[n] for n in weights}
    )
    assert f"Some names have a '{wrapper}'" in refusal(folder)


def test_a_head_inside_of_a_multimodal_model_is_not_read(tmp_path):
    config = LlavaConfig(text_config=tiny_config("llama").to_dict(), vision_config=VISION)
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    weights = weights_of(tmp_path)
    assert "language_model.lm_head.weight" in weights
    loaded = load(tmp_path).get_input_embeddings().weight
    assert torch.equal(loaded, weights["language_model.model.embed_tokens.weight"])
    write_weights(tmp_path, weights | {"language_model.model.layers.0.x.weight": torch.ones(3)})
    assert "UNEXPECTED" in refusal(tmp_path)


def test_a_pooler_and_a_vision_tower_may_be_absent_and_a_text_layer_not(tmp_path):
    sizes: dict[str, Any] = dict(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    BertForMaskedLM(BertConfig(intermediate_size=32, **sizes)).save_pretrained(tmp_path / "bert")
    load(tmp_path / "bert")

    config = Gemma3Config(text_config=tiny_config("gemma3").to_dict(), vision_config=VISION)
    folder = tmp_path / "gemma"
    AutoModel.from_config(config).save_pretrained(folder)
    weights = weights_of(folder)
    write_weights(folder, {n: value for n, value in weights.items() if "vision_tower" not in n})
    load(folder)
    write_weights(folder, {n: v for n, v in weights.items() if "layers.1.mlp.up_proj" not in n})
    assert "layers.1.mlp.up_proj" in refusal(folder)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"intermediate_size": 96}, "MISMATCH"),
        ({"vocab_size": 500}, "MISMATCH"),
        ({"num_key_value_heads": 2}, "MISMATCH"),
        ({"num_hidden_layers": 3}, "MISSING"),
        ({"num_hidden_layers": 1}, "UNEXPECTED"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1,000,000,000"),
        ({"vocab_size": 10**9}, "describes"),
        ({"intermediate_size": 10**8}, "describes"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
        ({"hidden_size": [32]}, "hidden_size"),
        ({"num_attention_heads": 0}, ""),
        ({"model_type": ...}, "model_type"),
        ({"model_type": "unheard_of"}, "unheard_of"),
        ({"model_type": ["llama"]}, ""),
        ({"rope_parameters": "none"}, ""),
        ({"quantization_config": "gptq"}, ""),
        ({"quantization_config": {"bits": 4}}, "quant_method"),
    ],
)
def test_a_config_that_is_not_that_of_the_weights_is_refused(folder, values, named):
    change_config(folder, **values)
    assert named in refusal(folder)


# Damaged files


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123456789\n"


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("model.safetensors", POINTER, "git lfs pull"),
        ("tokenizer.json", POINTER, "git lfs pull"),
        ("config.json", POINTER, "git lfs pull"),
        ("model.safetensors", b"", "empty"),
        ("model.safetensors", lambda old: old[:-100], "damaged"),
        ("model.safetensors", lambda old: old[:40], "damaged"),
        ("model.safetensors", lambda old: b"\xff" * 8 + old[8:], "damaged"),
        ("model.safetensors", lambda old: old.replace(b'"F32"', b'"F33"', 1), "damaged"),
        ("config.json", b"[1, 2]", "holds a list"),
        ("config.json", b'{"model_type": "llama"', "damaged"),
        ("config.json", b"\xff\xfe\x00", "damaged"),
        ("config.json", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        ("tokenizer.json", b"[]", "no JSON object"),
        ("tokenizer.json", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "tokenizer"),
        ("tokenizer.json", b'{"version": "1.0"}', "tokenizer"),
        ("tokenizer_config.json", b"[]", "holds a list"),
    ],
)
def test_a_damaged_file_is_named_before_any_model_runs(folder, original, file, content, named):
    old = (folder / file).read_bytes()
    (folder / file).write_bytes(content(old) if callable(content) else content)
    both = [str(original), str(folder)]
    line = refusal(folder, lambda _: load_sources(both, placement=Placement(CPU), dtype="float32"))
    assert named in line
    refusal(folder, lambda _: load_language_model(str(folder), device=CPU))


def test_a_folder_without_a_tokenizer_or_weights_says_so(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    line = refusal(folder, lambda f: load_tokenizer(ModelName(str(f))))
    assert "it has no tokenizer" in line and "tokenizer.save_pretrained" in line
    (folder / "model.safetensors").rename(folder / "model.gguf")
    assert "no weights" in (line := refusal(folder)) and "model.gguf" in line


def test_shards_are_read_and_what_is_wrong_with_their_index_is_named(folder):
    weights = weights_of(folder)
    (folder / "model.safetensors").unlink()
    index, places = write_shards(folder, weights)
    assert torch.equal(load(folder).layers[0].mlp.up_proj.weight, weights[UP])
    other = next(file for file in places.values() if file != places[UP])
    for changed, named in [
        ({"weight_map": places | {UP: other}}, UP),
        ({"weight_map": places | {UP: "absent.safetensors"}}, "absent.safetensors"),
        ({"weight_map": places | {UP: "../llama-b/" + other}}, "outside"),
        ({"weight_map": places | {UP: 3}}, "weight_map"),
        ({"weight_map": list(places)}, "weight_map"),
        ({"weight_map": {}, "metadata": {}}, "weight_map"),
        ({"weight_map": places}, "metadata"),
        ([places], "holds a list"),
    ]:
        index.write_text(json.dumps(changed), encoding="utf-8")
        assert named in refusal(folder)
    index.write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    (folder / other).write_bytes((folder / other).read_bytes()[:-10])
    assert other in refusal(folder)


class Anything:
    pass


def test_pickled_weights_are_read_where_they_are_weights_alone(folder):
    weights = weights_of(folder)
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    torch.save({f"module.{name}": value for name, value in weights.items()}, file)
    assert torch.equal(load(folder).layers[0].mlp.up_proj.weight, weights[UP])
    for content, named in [
        ({**weights, "more": Anything()}, "pickled objects"),
        ({"model": weights, "step": 3}, "trainer's checkpoint"),
        (list(weights.values()), "no dictionary of weights"),
    ]:
        torch.save(content, file)
        assert named in refusal(folder)
    torch.save(weights, file)
    file.write_bytes(file.read_bytes()[:-1000])
    assert "damaged" in refusal(folder)


def test_adapters_inside_of_the_weights_are_refused(folder):
    weights = {f"base_model.model.{n}": value for n, value in weights_of(folder).items()}
    lora = "base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight"
    write_weights(folder, weights | {lora: torch.ones(2, 32)})
    assert "not merged" in refusal(folder)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        TypeError("no"),
        RecursionError("maximum recursion depth exceeded"),
        AttributeError("'list' object has no attribute 'get'"),
        type("PanicException", (BaseException,), {})("called `Option::unwrap()`"),
    ],
)
def test_whatever_a_library_raises_becomes_one_line(folder, error, monkeypatch):
    def raise_it(*args, **kwargs):
        raise error

    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", raise_it)
    refusal(folder, lambda f: load_config(ModelName(str(f))))


def test_a_lack_of_memory_has_a_sentence_of_its_own_and_ctrl_c_passes(folder, monkeypatch):
    raised = [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    ]

    def raise_it(*args, **kwargs):
        raise raised.pop()

    monkeypatch.setattr(AutoModel, "from_pretrained", raise_it)
    while raised:
        assert "too little memory" in refusal(folder)
    raised.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        load(folder)


# Quantised on disk


def quantised(folder, method):
    """A tiny checkpoint whose weights are kept in MXFP4 or FP8."""
    generator = torch.Generator().manual_seed(3)
    shared: dict[str, Any] = dict(
        vocab_size=128, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
    )
    if method == "mxfp4":
        config = GptOssConfig(
            **shared,
            hidden_size=64,
            intermediate_size=64,
            num_key_value_heads=1,
            head_dim=32,
            num_local_experts=2,
            num_experts_per_tok=1,
        )
        settings = {"modules_to_not_convert": ["model.layers.*.self_attn", "model.embed_tokens"]}
    else:
        config = LlamaConfig(**shared, hidden_size=128, intermediate_size=128)
        block = None if method == "mxfp8" else [128, 128]
        settings = {"activation_scheme": "dynamic", "weight_block_size": block}
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for name in list(weights):
        if method == "mxfp4" and name.endswith(("gate_up_proj", "down_proj")):
            experts, rows, columns = weights.pop(name).shape
            shape = (experts, columns, rows // 32)
            weights[f"{name}_blocks"] = torch.randint(
                0, 255, (*shape, 16), dtype=torch.uint8, generator=generator
            )
            weights[f"{name}_scales"] = torch.randint(
                118, 124, shape, dtype=torch.uint8, generator=generator
            )
        elif method == "fp8" and "proj.weight" in name:
            scale = weights[name].abs().max() / 448
            weights[name] = (weights[name] / scale).to(torch.float8_e4m3fn)
            weights[f"{name}_scale_inv"] = scale.reshape(1, 1)
    model.save_pretrained(folder)
    write_weights(folder, {name: value.contiguous() for name, value in weights.items()})
    change_config(folder, quantization_config={"quant_method": method, **settings})
    return model


@pytest.mark.parametrize("method", ["mxfp4", "fp8"])
def test_hidden_states_of_quantised_checkpoints_are_those_of_transformers(tmp_path, method):
    original = quantised(tmp_path, method)
    loaded = assert_loads_as_transformers_does(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for one, other in zip(loaded.parameters(), load(tmp_path).parameters(), strict=True):
        assert torch.equal(one, other)
    if method == "fp8":
        for one, other in zip(loaded.parameters(), original.base_model.parameters(), strict=True):
            assert (one - other).norm() < 0.05 * other.norm()
    assert "quantised already" in refusal(tmp_path, load_in_8bit=True)


def test_modules_that_a_quantised_checkpoint_excepts_stay_excepted(tmp_path):
    original = quantised(tmp_path, "fp8")
    weights = weights_of(tmp_path)
    excepted = "model.layers.0.mlp.up_proj"
    weights[f"{excepted}.weight"] = original.get_submodule(excepted).weight.data.clone()
    del weights[f"{excepted}.weight_scale_inv"]
    write_weights(tmp_path, weights)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    settings = config["quantization_config"] | {"modules_to_not_convert": [excepted]}
    change_config(tmp_path, quantization_config=settings)
    loaded = assert_loads_as_transformers_does(tmp_path)
    assert torch.equal(loaded.layers[0].mlp.up_proj.weight, weights[f"{excepted}.weight"])


def test_scales_whose_settings_were_lost_are_not_left_out(tmp_path):
    quantised(tmp_path, "fp8")
    change_config(tmp_path, quantization_config=...)
    assert "weight_scale_inv" in refusal(tmp_path)
    change_config(tmp_path, quantization_config={"quant_method": "unheard_of"})
    assert "weight_scale_inv" in refusal(tmp_path)


def test_scales_are_applied_where_settings_except_their_weight_wrongly(tmp_path):
    original = quantised(tmp_path, "fp8")
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    settings = config["quantization_config"]
    excepted = {"modules_to_not_convert": ["model.layers.1.mlp.down_proj"]}
    change_config(tmp_path, quantization_config=settings | excepted)
    true = original.get_submodule("model.layers.1.mlp.down_proj").weight
    assert (load(tmp_path).layers[1].mlp.down_proj.weight - true).norm() < 0.05 * true.norm()
    weights = weights_of(tmp_path)
    more = {"model.layers.1.mlp.down_proj.input_scale": torch.ones(1)}
    write_weights(tmp_path, weights | more)
    change_config(tmp_path, quantization_config=settings)
    load(tmp_path)


def test_plain_weights_under_unknown_settings_are_read_as_they_are(folder):
    change_config(folder, quantization_config={"quant_method": "unheard_of"})
    assert torch.equal(load(folder).layers[0].mlp.up_proj.weight, weights_of(folder)[UP])


def test_empty_settings_of_a_quantisation_are_none_and_others_than_settings_are_named(folder):
    for nothing in ({}, None):
        change_config(folder, quantization_config=nothing)
        assert torch.equal(load(folder).layers[0].mlp.up_proj.weight, weights_of(folder)[UP])
    for value in ("fp8", ["fp8"], 8):
        change_config(folder, quantization_config=value)
        assert "quantization_config" in (line := refusal(folder)) and "damaged" in line


@pytest.mark.parametrize(
    ("settings", "package"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "optimum"),
        ({"quant_method": "awq", "bits": 4, "group_size": 32}, "gptqmodel"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "compressed-tensors"),
        ({"quant_method": "torchao"}, "torchao"),
    ],
)
def test_a_quantisation_whose_package_is_absent_names_it(folder, settings, package):
    weights = weights_of(folder)
    for name in [name for name in weights if "proj.weight" in name]:
        rows, columns = weights.pop(name).shape
        stem = name.removesuffix("weight")
        weights[f"{stem}qweight"] = torch.zeros(columns // 8, rows, dtype=torch.int32)
        weights[f"{stem}qzeros"] = torch.zeros(columns // 32, rows // 8, dtype=torch.int32)
        weights[f"{stem}scales"] = torch.ones(columns // 32, rows, dtype=torch.float16)
    write_weights(folder, weights)
    change_config(folder, quantization_config=settings)
    assert f"pip install {package}" in (line := refusal(folder)).replace("-U ", ""), line


@pytest.mark.parametrize("stored", ["float8_e4m3fn", "float16", "bfloat16"])
def test_what_the_config_says_of_the_dtype_does_not_decide_on_it(folder, stored):
    dtype = getattr(torch, stored)
    weights = {name: value.to(dtype) for name, value in weights_of(folder).items()}
    write_weights(folder, weights)
    change_config(folder, dtype=stored, torch_dtype=stored)
    loaded = load(folder)
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.layers[0].mlp.up_proj.weight, weights[UP].float())


# Code of the model's own


def test_code_of_a_model_runs_only_where_it_is_allowed(folder, tmp_path):
    ran = tmp_path / "ran"
    (folder / "configuration_own.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import LlamaConfig\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n",
        encoding="utf-8",
    )
    (folder / "modeling_own.py").write_text(
        "from transformers import LlamaModel\nfrom .configuration_own import OwnConfig\n"
        "class OwnModel(LlamaModel):\n    config_class = OwnConfig\n",
        encoding="utf-8",
    )
    auto_map = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    change_config(folder, model_type="own", auto_map=auto_map)
    assert "--trust_remote_code" in refusal(folder)
    assert not ran.exists()
    allowed = ModelName(str(folder), trust_remote_code=True)
    loaded = load_pretrained(allowed, place=CPU, dtype=torch.float32)
    assert ran.exists() and type(loaded).__name__ == "OwnModel"
    assert torch.equal(loaded.layers[0].mlp.up_proj.weight, weights_of(folder)[UP])


# What a model can read


def sources_of(folder, other):
    return load_sources([str(folder), str(other)], placement=Placement(CPU), dtype="float32")


def windows_of(lengths, largest):
    from datasets import Dataset

    ids = [[5] * (length - 1) + [largest] for length in lengths]
    pairs = [[1]] * len(ids)
    return Dataset.from_dict(
        {"text_id": list(range(len(ids)))}
        | {f"input_ids_{s}": ids for s in (0, 1)}
        | {f"pairs_{s}": pairs for s in (0, 1)}
    )


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
def test_windows_longer_than_a_models_positions_are_refused(original, tmp_path, kind):
    other = save_tiny_model(tmp_path / kind, kind, byte_level_tokenizer(), layers=2)
    change_config(other, n_positions=512, max_position_embeddings=512)
    change_config(original, max_position_embeddings=4096)
    sources = sources_of(original, other)
    windows = windows_of([8, 513], 5)
    for ask in (
        lambda: check_windows(sources, windows),
        lambda: harvest_windows(sources, windows, range(2), batch_size=2),
    ):
        with pytest.raises(ValueError, match=rf"{kind}' reads at most 512 .* --ctx_len to 512"):
            ask()
    check_windows(sources, windows_of([8, 512], 5))


def test_a_token_beyond_the_embedding_is_named_before_a_model_reads_it(folder, caplog):
    tokenizer = load_tokenizer(ModelName(str(folder)))
    rows = len(tokenizer)
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(folder)
    with caplog.at_level(logging.WARNING):
        sources = sources_of(folder, folder)
    assert "'<think>'" in caplog.text
    windows = windows_of([4, 4], rows)
    for ask in (
        lambda: check_windows(sources, windows),
        lambda: harvest_windows(sources, windows, range(2), batch_size=2),
    ):
        with pytest.raises(ValueError, match=rf"<think>.* id {rows}, .* {rows} tokens only"):
            ask()
    check_windows(sources, windows_of([4, 4], rows - 1))
    model, tokenizer = load_language_model(str(folder), device=CPU)
    with pytest.raises(ValueError, match=r"'<think>'"):
        generate(
            model,
            "a <think> b",
            (),
            [()],
            Sampling(2),
            tokenizer=tokenizer,
            answering=Answering(chat=False),
        )


def test_positions_are_what_a_model_was_made_for():
    assert context_length(tiny_model("llama")) == 512
    assert context_length(tiny_model("gpt2")) == 512
    sizes: dict[str, Any] = dict(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    roberta = RobertaConfig(max_position_embeddings=66, pad_token_id=1, **sizes)
    assert context_length(AutoModel.from_config(roberta)) == 64  # the first two are of padding


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "default"}, 64),
        ({"rope_type": "linear", "factor": 4.0}, 256),
        ({"rope_type": "dynamic", "factor": 2.0}, 128),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, 64),
    ],
)
def test_scaled_rotary_positions_reach_as_far_as_they_are_stretched(rope, limit):
    config = tiny_config("llama", layers=1).to_dict()
    config |= {"max_position_embeddings": 64, "rope_parameters": {"rope_theta": 1e4} | rope}
    assert context_length(AutoModel.from_config(LlamaConfig(**config))) == limit


def test_alibi_has_no_limit_but_for_the_table_of_mpt():
    sizes: dict[str, Any] = dict(vocab_size=64, hidden_size=16)
    falcon = dict(num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64)
    for config, limit in [
        (BloomConfig(n_layer=1, n_head=2, **sizes), None),
        (FalconConfig(alibi=True, **sizes, **falcon), None),
        (FalconConfig(alibi=False, **sizes, **falcon), 64),
        (MptConfig(vocab_size=64, d_model=16, n_layers=1, n_heads=2, max_seq_len=64), 64),
    ]:
        assert context_length(AutoModel.from_config(config)) == limit


def test_a_run_does_not_remember_that_code_was_trusted(tmp_path):
    options = ["a", "b", "--partners", "c", "--trust_remote_code"]
    asked = parse_run_config(options)
    assert asked.trust_remote_code and not parse_run_config(options[:-1]).trust_remote_code
    saved = json.dumps(asked.to_dict())
    assert json.loads(saved)["trust_remote_code"]
    (tmp_path / "config.json").write_text(saved, encoding="utf-8")
    assert not load_run_config(tmp_path).trust_remote_code
    assert load_run_config(tmp_path, trust_remote_code=True).trust_remote_code
