"""Tokens that a direction of a residual stream makes likelier by itself (the logit lens).

A direction `d` changes the logits by `W (g * d) / r`, as far as later layers leave it alone: `W`
is the unembedding, `g` the weight of the model's last norm, and `r` the size of the stream that
the norm divides by, which is the same for all tokens of the vocabulary and so changes no order. A
norm that takes the mean off takes it off `d` too. `g` is measured on the norm itself, so that
"1 + weight" and the like are what they are. Biases, caps and scales of logits change no order.

D width, V vocabulary, F directions.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .hookpoints import first_tensor, layer_list

AT_ONCE = 2**24  # logits
_NO_WORD = re.compile(r"<\|?(unused|reserved)[\w ]*\|?>")


class NoUnembedding(ValueError):
    """A model whose logits are not a norm and a matrix away from its residual stream."""


class Promoted(NamedTuple):
    """A token, and by how many standard deviations of the vocabulary it is above the mean."""

    token: str
    z: float


@torch.inference_mode()
def promoted_tokens(
    model: Any, tokenizer: Any, directions: Tensor, most: int = 8
) -> list[tuple[list[Promoted], list[Promoted]]]:
    """What each direction `[F, D]`, in raw activations, makes likelier and less likely.

    Standardised over the vocabulary; of some 100,000 tokens a random direction's first is at
    about 4.3. Left out are special and unused tokens, and those that are no whole characters.
    Raises NoUnembedding, which says why, where a model has none that this can be read off.
    """
    head, scale, centred = linear_readout(model)
    if directions.shape[1] != len(scale):
        raise NoUnembedding(
            f"directions of width {directions.shape[1]} are not of its residual stream, which has "
            f"{len(scale)}"
        )
    texts, kept = _vocabulary(tokenizer)
    weight = next(head.parameters())
    dtype = weight.dtype if weight.dtype.is_floating_point else model.dtype
    found: list[tuple[list[Promoted], list[Promoted]]] = []
    nothing = head(torch.zeros(1, len(scale), dtype=dtype, device=model.device)).float().cpu()
    kept = kept[kept < nothing.shape[1]]
    parts = directions.split(max(AT_ONCE // nothing.shape[1], 1))
    for some in tqdm(parts, desc="Reading the unembedding", unit="part", delay=1):
        some = torch.nn.functional.normalize(some.float(), dim=1)
        if centred:
            some = some - some.mean(1, keepdim=True)
        logits = head((some * scale).to(model.device, dtype)).float().cpu() - nothing
        logits = logits[:, kept]
        z = (logits - logits.mean(1, keepdim=True)) / logits.std(1, keepdim=True).clamp_min(1e-30)
        for row in z:
            found.append((_strongest(row, kept, texts, most), _strongest(-row, kept, texts, most)))
    return found


@torch.inference_mode()
def linear_readout(model: Any) -> tuple[nn.Module, Tensor, bool]:
    """The unembedding, the weight `[D]` of the norm before it, and whether that takes the mean off.

    Found by reading a few tokens: the norm is what gives the unembedding its input. Raises
    NoUnembedding where there is no unembedding, or something else stands before it.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise NoUnembedding(f"{type(model).__name__} has no unembedding")
    path, _ = layer_list(model)
    last = model.base_model.get_submodule(path)[-1]
    layers = {id(module) for module in model.base_model.get_submodule(path).modules()}
    steps: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(first_tensor(output), Tensor):
            steps.append((module, args[0], first_tensor(output)))

    leaves = [m for m in model.modules() if not [*m.children()] and id(m) not in layers]
    handles = [module.register_forward_hook(note) for module in {*leaves, last} - {head}]
    read: list[Tensor] = []
    handles.append(head.register_forward_pre_hook(lambda module, args: read.append(args[0])))
    size = model.config.get_text_config(decoder=True).vocab_size
    try:
        ids = torch.linspace(0, size - 1, 4).long()[None]
        model(input_ids=ids.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if not read:
        raise NoUnembedding(f"{type(model).__name__} does not read its unembedding")
    for module, given, output in steps:
        if output.shape != read[-1].shape or not torch.equal(output, read[-1]):
            continue
        if module is last:
            return head, torch.ones(output.shape[-1]), False
        if not torch.equal(given, output):
            return head, *_weight_of_norm(module, given)
    raise NoUnembedding(
        f"what {type(model).__name__} does between its last layer and its unembedding is not a norm"
    )


def _weight_of_norm(norm: nn.Module, example: Tensor) -> tuple[Tensor, bool]:
    """The weight of a norm, and whether it takes the mean off; from what it makes of a probe."""
    width = example.shape[-1]
    probe = torch.ones(width)
    probe[1::2] = -1
    if width % 2:
        probe[-3:] = torch.tensor([2.0, -1.0, -1.0]) if width > 1 else 1.0

    def of(x: Tensor) -> Tensor:
        return norm(x.to(example.device, example.dtype)[None, None])[0, 0].float().cpu()

    weight = (of(probe) - of(-probe)) / 2 / probe * probe.square().mean().sqrt()
    if not torch.allclose(of(4 * probe), of(probe), rtol=0.02, atol=0.02):
        raise NoUnembedding(f"a {type(norm).__name__}, which is no norm, stands before it")
    return weight, bool(torch.allclose(of(probe + 2), of(probe), rtol=0.05, atol=0.05))


def _vocabulary(tokenizer: Any) -> tuple[list[str], Tensor]:
    """Every token as text, and which are of whole characters and not special."""
    every = [[token] for token in range(len(tokenizer))]
    texts: list[str] = list(tokenizer.batch_decode(every, clean_up_tokenization_spaces=False))
    special = set(tokenizer.all_special_ids)
    kept = [
        token
        for token, text in enumerate(texts)
        if text and "\ufffd" not in text and token not in special and not _NO_WORD.fullmatch(text)
    ]
    return texts, torch.tensor(kept, dtype=torch.long)


def _strongest(z: Tensor, kept: Tensor, texts: list[str], most: int) -> list[Promoted]:
    # Rounded before they are put in order: the last bits differ from machine to machine.
    top = z.topk(min(4 * most, len(z)))
    found = [
        (-round(value, 2), token)
        for value, token in zip(top.values.tolist(), kept[top.indices].tolist(), strict=True)
    ]
    return [Promoted(texts[int(token)], -value) for value, token in sorted(found)[:most]]
