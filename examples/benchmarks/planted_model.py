"""A model that differs from another in one neuron, which writes one direction on some tokens.

The neuron is in the block whose output is read, so that all the models' difference is there, and
what it does to the next tokens is measured exactly, by reading both models.

    python examples/benchmarks/planted_model.py MODEL OUT --layer 15 --text texts.jsonl
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS, TOKENS = 200, 128
RIDGE = 1e-3
SHARP = 8.0  # of the gate: below 0 it is shut


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a model that differs in one neuron.")
    parser.add_argument("model", type=Path, help="a model of Llama's kind")
    parser.add_argument("out", type=Path, help="folder for the model with the plant")
    parser.add_argument("--layer", type=int, required=True, help="block whose output is read")
    parser.add_argument("--text", type=Path, required=True, help="JSON lines with a column text")
    parser.add_argument(
        "--token", default=" the", help="token on which it is written (%(default)r)"
    )
    parser.add_argument("--size", type=float, default=1.0, help="in median norms (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the direction (%(default)s)")
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    with open(args.text, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line, _ in zip(file, range(TEXTS), strict=False)]
    plant(model, tokenizer, texts, args)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


@torch.inference_mode()
def plant(model, tokenizer, texts: list[str], args: argparse.Namespace) -> None:
    """Make the least used neuron of a block write a random direction on one token."""
    (wanted,) = tokenizer(args.token, add_special_tokens=False)["input_ids"]
    block = model.model.layers[args.layer]
    read, hidden, fired, there = [], [], [], []
    handles = [
        block.mlp.register_forward_pre_hook(lambda module, given: read.append(given[0][0])),
        block.mlp.down_proj.register_forward_pre_hook(
            lambda module, given: fired.append(given[0][0])
        ),
        block.register_forward_hook(lambda module, given, output: hidden.append(_first(output)[0])),
    ]
    for text in texts:
        ids = tokenizer(text)["input_ids"][:TOKENS]
        model.model(torch.tensor([ids]), use_cache=False)
        there.append(torch.tensor(ids) == wanted)
    for handle in handles:
        handle.remove()
    x, present = (torch.cat([one[1:] for one in some]).double() for some in (read, there))
    norm = torch.cat([one[1:] for one in hidden]).norm(dim=1).median()
    neuron = int(torch.cat(fired).square().mean(0).argmin())
    # Positive on the token, negative elsewhere; one everywhere.
    gate, one = _reads(x, 2 * present - 1), _reads(x, torch.ones_like(present))
    direction = torch.randn(x.shape[1], generator=torch.Generator().manual_seed(args.seed))
    written = torch.nn.functional.silu(SHARP * x @ gate) * (x @ one)
    scale = args.size * norm / written[present.bool()].mean()
    block.mlp.gate_proj.weight[neuron] = (SHARP * gate).float()
    block.mlp.up_proj.weight[neuron] = one.float()
    block.mlp.down_proj.weight[:, neuron] = (scale * direction / direction.norm()).float()
    for name, some in (("on the token", present.bool()), ("elsewhere", ~present.bool())):
        length = (written[some] * scale / norm).abs()
        print(f"{name}: {some.double().mean():.2%} of tokens, {length.mean():.3f} median norms")


def _reads(x: Tensor, wanted: Tensor) -> Tensor:
    """Weights that read `wanted` [N] from `x` [N, D], by ridge regression without a constant; what
    is rare weighs as much as the rest."""
    rare = wanted > 0
    share = rare.double().mean().clamp(1e-9, 1 - 1e-9)
    weights = torch.where(rare, 1 / share, 1 / (1 - share))
    products = (x * weights[:, None]).T @ x
    products.diagonal().add_(RIDGE * products.diagonal().mean())
    return torch.linalg.solve(products, (x * weights[:, None]).T @ wanted)


def _first(output) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


if __name__ == "__main__":
    main()
