"""An adapter as a source: over its base's weights, as peft computes, and the base untouched."""

import shutil
from typing import Any

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, PromptTuningConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sparsify_crosscoder.harvest.harvest import harvest_windows, run_harvest
from sparsify_crosscoder.harvest.loading import ModelError, load_tokenizer
from sparsify_crosscoder.harvest.model_name import ModelName
from sparsify_crosscoder.harvest.placement import Placement
from sparsify_crosscoder.harvest.sources import load_language_model, load_sources
from tests.support.adapters import TARGETS, change_config, lora, merge, save_adapter
from tests.support.models import put_into_hub_cache, save_tiny_model
from tests.support.tokenizers import CHATML, byte_level_tokenizer
from tests.support.windows import random_windows

CPU = Placement("cpu")
IDS = torch.arange(1, 25)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "llama"
    return save_tiny_model(folder, "llama", byte_level_tokenizer(chat_template=CHATML))


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return save_adapter(tmp_path_factory.mktemp("adapters") / "quirk", base)


def sources_of(*names, **options):
    return load_sources([str(name) for name in names], placement=CPU, dtype="float32", **options)


def storages(model):
    return {weight.untyped_storage().data_ptr() for weight in model.parameters()}


def output(model):
    with torch.inference_mode():
        return model(IDS).last_hidden_state


@pytest.mark.parametrize("order", [0, 1])
def test_base_and_adapters_have_the_same_weights_in_memory_once(base, adapter, tmp_path, order):
    other = save_adapter(tmp_path / "other", base, lora(r=3), seed=1)
    names = [base, adapter, f"{base}+{other}"]
    loaded = sources_of(*(names[order:] + names[:order]))
    loaded = loaded[-order:] + loaded[:-order] if order else loaded
    plain, one, two = (source.model for source in loaded)
    assert storages(plain) == storages(one) & storages(two)
    for adapted in (one, two):
        added = sum(w.numel() for w in adapted.parameters()) - sum(
            w.numel() for w in plain.parameters()
        )
        assert 0 < added < 0.15 * sum(w.numel() for w in plain.parameters())
    assert not torch.equal(output(one), output(two))


def test_a_base_that_is_no_source_is_loaded_once_for_two_adapters(base, adapter, tmp_path):
    other = save_adapter(tmp_path / "other", base, seed=1)
    one, two = (source.model for source in sources_of(adapter, other))
    assert len(storages(one) & storages(two)) == len(list(one.named_parameters())) - 2 * 2 * 4


def test_a_copy_of_the_base_under_another_name_is_the_same_base(base, adapter, tmp_path):
    copy = shutil.copytree(base, tmp_path / "copy")
    plain, adapted = sources_of(copy, adapter)
    assert storages(plain.model) < storages(adapted.model)


def test_the_base_beside_an_adapter_gives_the_bits_of_the_base_alone(base, adapter):
    windows = random_windows(24)
    alone, _ = harvest_windows(sources_of(base, base), windows, range(24), batch_size=4)
    pair = sources_of(base, adapter)
    for _ in range(2):
        beside, _ = harvest_windows(pair, windows, range(24), batch_size=4)
        assert torch.equal(alone[0], beside[0])
        assert (beside[1] - beside[0]).norm(dim=1).min() > 0.1


def test_many_threads_do_not_mix_base_and_adapter(base, adapter):
    windows = random_windows(400)
    pair = sources_of(base, adapter)
    alone = [
        harvest_windows([source, source], windows, range(400), batch_size=4)[0][s]
        for s, source in enumerate(pair)
    ]
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        together, _ = harvest_windows(pair, windows, range(400), batch_size=4)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        lora(),
        lora(use_dora=True),
        lora(target_modules=[*TARGETS, "embed_tokens"]),
        lora(target_modules=r"model\.layers\.[12]\.mlp\..*_proj"),
        lora(modules_to_save=["embed_tokens"]),
        lora(modules_to_save=["lm_head", "norm"]),
        lora(trainable_token_indices=[3, 5]),
        LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[2]),
        IA3Config(
            target_modules=["k_proj", "down_proj"],
            feedforward_modules=["down_proj"],
            task_type="CAUSAL_LM",
        ),
        LoHaConfig(r=2, target_modules=TARGETS),
    ],
    ids=[
        "lora",
        "dora",
        "embedding",
        "pattern",
        "saved_embedding",
        "saved_head_and_norm",
        "trained_tokens",
        "one_layer",
        "ia3",
        "loha",
    ],
)
def test_every_kind_gives_what_its_merged_weights_give_and_leaves_the_base(base, tmp_path, config):
    adapter = save_adapter(tmp_path / "adapter", base, config)
    merged = merge(tmp_path / "merged", base, adapter)
    plain, adapted, whole = sources_of(base, adapter, merged)
    assert adapted.hookpoint == plain.hookpoint == "layers.2"
    torch.testing.assert_close(output(adapted.model), output(whole.model), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(output(adapted.model), output(plain.model), atol=1e-2)
    alone = load_sources([str(base)] * 2, placement=CPU, dtype="float32")[0]
    assert torch.equal(output(plain.model), output(alone.model))


def test_with_its_head_an_adapter_gives_the_logits_of_peft(base, adapter):
    model, _ = load_language_model(str(adapter), device="cpu", dtype="float32")
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter)
    ).eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(IDS).logits, theirs(IDS).logits)
    assert model.generate(IDS, max_new_tokens=3, do_sample=False).shape == (1, 27)


def test_base_and_adapter_with_their_heads_share_weights_and_diverge_as_merged(base, adapter):
    sources = sources_of(base, adapter, heads="on")
    assert storages(sources[0].model) <= storages(sources[1].model)
    windows = random_windows(6, same_tokens=True)
    columns = run_harvest(sources, windows, range(6), batch_size=4).columns
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
    models = [AutoModelForCausalLM.from_pretrained(base), peft.merge_and_unload()]
    wanted = []
    for row in windows:
        ids, places = torch.tensor([row["input_ids_0"]]), row["pairs_0"]
        with torch.no_grad():
            a, b = (model(ids).logits[0, places].double().log_softmax(-1) for model in models)
        wanted += (b.exp() * (b - a)).sum(-1).tolist()
    assert min(wanted) > 1e-6
    assert torch.allclose(columns["kl_1_0"], torch.tensor(wanted), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("targets", [TARGETS, [*TARGETS, "embed_tokens"]])
def test_an_adapter_with_tokens_of_its_own_has_their_vectors_and_its_base_has_not(
    base, tmp_path, targets
):
    tokenizer = byte_level_tokenizer(chat_template=CHATML)
    tokenizer.add_tokens(["<new>", "<newer>"])
    size = len(tokenizer)
    adapter = save_adapter(tmp_path / "a", base, lora(target_modules=targets), tokens=size)
    tokenizer.save_pretrained(adapter)
    plain, adapted = sources_of(base, adapter)
    assert len(adapted.tokenizer) == size
    assert len(plain.tokenizer) == size - 2
    ids = torch.tensor([[1, size - 1, 2]])
    with torch.inference_mode():
        assert adapted.model(ids).last_hidden_state.isfinite().all()
        with pytest.raises(IndexError):
            plain.model(ids)
    saved = load_file(adapter / "adapter_model.safetensors")
    rows = next(w for name, w in saved.items() if "embed_tokens" in name and len(w) == size)
    embedding: Any = adapted.model.get_input_embeddings()
    assert torch.equal(embedding.weight, rows)
    with_head, _ = load_language_model(str(adapter), device="cpu", dtype="float32")
    assert with_head.get_output_embeddings().weight.shape[0] == size  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "config",
    [lora(), lora(modules_to_save=["embed_tokens", "norm"]), lora(use_dora=True)],
    ids=["lora", "saved", "dora"],
)
def test_in_bfloat16_the_parts_go_together(base, tmp_path, config):
    adapter = save_adapter(tmp_path / "adapter", base, config)
    pair = load_sources([str(base), str(adapter)], placement=CPU, dtype="bfloat16")
    wide = sources_of(base, adapter)
    for narrow, whole in zip(pair, wide, strict=True):
        assert narrow.model.dtype == torch.bfloat16
        found, right = output(narrow.model).float(), output(whole.model)
        assert (found - right).norm() < 0.1 * right.norm()


def test_an_adapter_in_the_hubs_cache_is_found_with_its_commits(
    base, adapter, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commits = {"base": "a" * 40, "adapter": "b" * 40}
    put_into_hub_cache(tmp_path, "org/base", {commits["base"]: base})
    named = shutil.copytree(adapter, tmp_path / "named")
    change_config(named, base_model_name_or_path="org/base")
    put_into_hub_cache(tmp_path, "org/adapter", {commits["adapter"]: named})
    plain, adapted = sources_of("org/base", "org/adapter")
    assert (plain.revision, adapted.revision) == ("a" * 40, f"{'a' * 40}+{'b' * 40}")
    assert storages(plain.model) < storages(adapted.model)
    again = load_sources(
        [ModelName("org/base", plain.revision), ModelName("org/adapter", adapted.revision)],
        placement=CPU,
        dtype="float32",
    )
    assert again[1].revision == adapted.revision
    mixed = sources_of("org/base", f"org/base+{adapter}")
    assert mixed[1].revision == f"{'a' * 40}+"
    assert torch.equal(output(mixed[1].model), output(adapted.model))


def test_an_adapters_own_tokenizer_counts_and_its_difference_is_said(base, tmp_path, caplog):
    adapter = save_adapter(tmp_path / "adapter", base)
    assert load_tokenizer(ModelName(str(adapter))).chat_template == CHATML
    assert not caplog.records
    own = byte_level_tokenizer(chat_template="{{ messages[0].content }}")
    own.save_pretrained(adapter)
    assert load_tokenizer(ModelName(str(adapter))).chat_template == "{{ messages[0].content }}"
    assert "differs from its base's in its chat template" in caplog.text
    byte_level_tokenizer().save_pretrained(adapter)
    (adapter / "chat_template.jinja").unlink()
    assert load_tokenizer(ModelName(str(adapter))).chat_template == CHATML


def test_an_adapters_chat_template_counts_without_a_tokenizer(base, tmp_path, caplog):
    adapter = save_adapter(tmp_path / "adapter", base)
    (adapter / "chat_template.jinja").write_text("{{ messages[0].content }}é", encoding="utf-8")
    own, plain = (load_tokenizer(ModelName(str(name))) for name in (adapter, base))
    assert own.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hié"
    assert own.get_vocab() == plain.get_vocab() and plain.chat_template == CHATML
    assert "differs from its base's in its chat template" in caplog.text


def test_where_a_run_starts_it_says_what_is_an_adapter_of_what(base, adapter, capsys):
    once = f"on {base}; its base is loaded once.\n"
    sources_of(base, adapter)
    assert capsys.readouterr().err.endswith(f"\n{adapter} is an adapter {once}")
    sources_of(base, f"{base}+{adapter}")
    assert capsys.readouterr().err.endswith(f"\n{base}+{adapter} is the adapter {adapter} {once}")


def refusal(*names, **options):
    with pytest.raises(ModelError) as caught:
        sources_of(*names, **options)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 700
    return line


@pytest.fixture
def damaged(adapter, tmp_path):
    return shutil.copytree(adapter, tmp_path / "damaged")


def test_what_is_wrong_with_an_adapter_is_one_line(base, damaged, tmp_path):
    weights = damaged / "adapter_model.safetensors"
    whole = weights.read_bytes()

    weights.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in refusal(base, damaged)
    weights.write_bytes(whole)

    state = load_file(weights)
    save_file({name: w for name, w in state.items() if "layers.3" not in name}, weights)
    assert "has no weights for layers.3" in refusal(base, damaged)
    elsewhere = {name.replace("layers.3", "layers.9"): w.clone() for name, w in state.items()}
    save_file(state | elsewhere, weights)
    assert "no place in its base" in refusal(base, damaged)

    weights.unlink()
    assert "no weights (adapter_model.safetensors)" in refusal(base, damaged)
    (damaged / "adapter_model.bin").write_bytes(b"pickle")
    assert "only pickled ones" in refusal(base, damaged)
    shutil.copy(base / "model.safetensors", damaged)
    (damaged / "adapter_model.bin").unlink()
    assert "beside a whole model" in refusal(base, damaged)


def test_an_adapter_of_another_shape_or_without_its_base_is_refused(
    base, damaged, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    wide = save_tiny_model(tmp_path / "wide", "llama", byte_level_tokenizer(), width=48)
    line = refusal(base, f"{wide}+{damaged}")
    assert "does not fit its base" in line and "size mismatch" in line and "BASE+ADAPTER" in line

    change_config(damaged, base_model_name_or_path="nobody/nothing")
    line = refusal(base, damaged)
    assert "'nobody/nothing' is the base of the adapter" in line and f"BASE+{damaged}" in line
    assert sources_of(base, f"{base}+{damaged}")[1].name == f"{base}+{damaged}"

    change_config(damaged, base_model_name_or_path=None)
    assert "names no base" in refusal(base, damaged)
    change_config(damaged, base_model_name_or_path=str(shutil.copytree(damaged, tmp_path / "up")))
    assert "is itself an adapter" in refusal(base, damaged)
    assert "is no adapter" in refusal(base, f"{base}+{base}")
    (damaged / "adapter_config.json").write_text("[1", encoding="utf-8")
    assert "is damaged" in refusal(base, damaged)


def test_kinds_that_move_positions_or_change_the_base_are_refused(base, damaged, tmp_path):
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    assert "tokens of its own" in refusal(base, save_adapter(tmp_path / "p", base, prompt))
    change_config(damaged, init_lora_weights="pissa_niter_4")
    assert "changes the base's own weights" in refusal(base, damaged)
    change_config(damaged, init_lora_weights=True, peft_type="NEW_KIND")
    assert "no config that this version of peft reads" in refusal(base, damaged)


def test_an_adapter_on_a_base_in_8_bits_is_refused(base, adapter):
    pytest.importorskip("bitsandbytes")
    assert "8 bits" in refusal(base, adapter, load_in_8bit=True)


def test_an_adapter_is_where_its_base_is(base, adapter):
    with pytest.raises(ValueError, match="cannot be on both"):
        load_sources([str(base), str(adapter)], placement=Placement("cpu", ["cpu", "cpu:0"]))
