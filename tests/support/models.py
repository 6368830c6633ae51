"""Tiny random language models, one per architecture family, built from their configs."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
)

KINDS = ("llama", "gpt2", "gemma3", "qwen3", "gpt_oss", "deepseek")


def tiny_config(
    kind: str, *, width: int = 32, layers: int = 4, vocab_size: int = 128
) -> PreTrainedConfig:
    """A config of this family small enough that a forward takes milliseconds (`width` even)."""
    shared = dict(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    if kind == "llama":
        return LlamaConfig(num_key_value_heads=1, **shared)
    if kind == "gpt2":
        return GPT2Config(
            vocab_size=vocab_size,
            n_embd=width,
            n_layer=layers,
            n_head=2,
            n_positions=512,
            bos_token_id=0,
            eos_token_id=0,
        )
    if kind == "gemma3":
        # A window shorter than the test texts and both kinds of layer, so that masks matter.
        return Gemma3TextConfig(
            num_key_value_heads=1,
            head_dim=8,
            sliding_window=8,
            layer_types=["full_attention" if i % 2 else "sliding_attention" for i in range(layers)],
            **shared,
        )
    if kind == "qwen3":
        return Qwen3Config(num_key_value_heads=1, head_dim=8, **shared)
    if kind == "gpt_oss":
        del shared["max_position_embeddings"]  # its YaRN settings belong to the default length
        return GptOssConfig(
            num_key_value_heads=1,
            head_dim=8,
            sliding_window=8,
            num_local_experts=4,
            num_experts_per_tok=2,
            **shared,
        )
    if kind == "deepseek":
        return DeepseekV3Config(
            num_key_value_heads=2,
            moe_intermediate_size=width,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=2,
            topk_group=1,
            n_shared_experts=1,
            first_k_dense_replace=1,
            q_lora_rank=16,
            kv_lora_rank=8,
            qk_nope_head_dim=8,
            qk_rope_head_dim=8,
            v_head_dim=8,
            **shared,
        )
    raise ValueError(f"Unknown kind {kind!r}; one of {KINDS}.")


def tiny_model(kind: str, *, seed: int = 0, causal_lm: bool = False, **sizes) -> PreTrainedModel:
    """A random float32 model in eval mode; weights are wide enough that layers differ visibly."""
    auto = AutoModelForCausalLM if causal_lm else AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(tiny_config(kind, **sizes), dtype=torch.float32)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
            elif "norm" not in name and "ln_" not in name:
                torch.nn.init.normal_(parameter, std=0.05)
    return model.eval().requires_grad_(False)


def save_tiny_model(
    folder: str | Path,
    kind: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    width: int = 32,
    layers: int = 4,
    seed: int = 0,
) -> Path:
    """Write a random causal LM (safetensors) with its tokenizer to `folder`; returns `folder`."""
    folder = Path(folder)
    model = tiny_model(
        kind, seed=seed, causal_lm=True, width=width, layers=layers, vocab_size=len(tokenizer)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_twins(folder: Path, width: int = 24) -> None:
    """Write a model `base`, a fine-tune of it `tuned`, and `other`, which has the same config and
    tokenizer as both and nothing else in common with them."""
    from tests.support.tokenizers import CHATML, byte_level_tokenizer

    tokenizer = byte_level_tokenizer(chat_template=CHATML)
    for name, seed, change in (("base", 0, 0.0), ("tuned", 0, 0.01), ("other", 1, 0.0)):
        model = tiny_model(
            "llama", seed=seed, causal_lm=True, width=width, vocab_size=len(tokenizer)
        )
        generator = torch.Generator().manual_seed(7)
        for weight in model.parameters():
            if weight.ndim > 1:
                weight += change * torch.randn(weight.shape, generator=generator)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def put_into_hub_cache(
    cache: Path, name: str, revisions: dict[str, str | Path], **branches: str
) -> None:
    """Lay models out as the hub's local cache has them, by commit (40 hex digits).

    `branches` says which commit each stands for; without any, `main` is the first.
    """
    repo = cache / f"models--{name.replace('/', '--')}"
    for commit, folder in revisions.items():
        shutil.copytree(folder, repo / "snapshots" / commit)
    for branch, commit in (branches or {"main": next(iter(revisions))}).items():
        (repo / "refs").mkdir(parents=True, exist_ok=True)
        (repo / "refs" / branch).write_text(commit, encoding="utf-8")


def change_a_value(folder: str | Path, by: float = 1.0) -> None:
    """Change one value in the middle of a layer's weight of a saved model."""
    file = Path(folder) / "model.safetensors"
    state = load_file(file)
    weight = next(w for name, w in sorted(state.items()) if "mlp" in name and w.ndim == 2)
    weight.view(-1)[weight.numel() // 2 + 1] += by
    save_file(state, file, metadata={"format": "pt"})
