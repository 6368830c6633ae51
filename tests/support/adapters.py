"""PEFT adapters with random weights, of tiny models, as peft itself saves them."""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

TARGETS = ["q_proj", "up_proj"]


def lora(**options: Any) -> LoraConfig:
    """A LoRA of attention and MLP, of rank 2."""
    return LoraConfig(
        **{"r": 2, "lora_alpha": 4, "target_modules": TARGETS, "task_type": "CAUSAL_LM"} | options
    )


def save_adapter(
    folder: Path,
    base: str | Path,
    config: PeftConfig | None = None,
    *,
    seed: int = 0,
    tokens: int | None = None,
) -> Path:
    """Write an adapter of the model in `base`, none of whose weights is zero; returns `folder`.

    `tokens` resizes the base's embedding before.
    """
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if tokens is not None:
        with torch.random.fork_rng(devices=[]):
            model.resize_token_embeddings(tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config or lora())
        with torch.no_grad():
            for weight in adapted.parameters():
                if weight.requires_grad:
                    weight += torch.randn_like(weight) * 0.2
    adapted.save_pretrained(str(folder))
    return folder


def merge(folder: Path, base: str | Path, adapter: str | Path) -> Path:
    """Write base and adapter as one model, by peft; returns `folder`."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()  # type: ignore[operator]
    merged.save_pretrained(folder)
    for file in Path(base).glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def change_config(adapter: Path, **values: Any) -> None:
    """Write other values into an adapter_config.json."""
    file = adapter / "adapter_config.json"
    content = json.loads(file.read_text(encoding="utf-8")) | values
    file.write_text(json.dumps(content), encoding="utf-8")
