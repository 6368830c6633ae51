"""Tokens that a direction promotes, against the same computed from the weights by hand."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from sparsify_crosscoder.harvest.promoted_tokens import (
    NoUnembedding,
    linear_readout,
    promoted_tokens,
)
from tests.support.models import KINDS, tiny_model
from tests.support.tokenizers import byte_level_tokenizer, metaspace_tokenizer

WIDTH = 32


def final_norm(model):
    names = ("model.norm", "transformer.ln_f")
    return next(module for name, module in model.named_modules() if name in names)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer()


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_of_the_weights(kind, tokenizer):
    model = tiny_model(kind, causal_lm=True, vocab_size=len(tokenizer))
    direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(3))
    # Gemma's norm multiplies by 1 + weight; GPT-2's takes the mean off.
    weight = final_norm(model).weight + (kind == "gemma3")
    centred = direction - direction.mean() if kind == "gpt2" else direction
    logits = model.get_output_embeddings().weight @ (weight * centred)
    special = set(tokenizer.all_special_ids)
    readable = [t for t in range(len(tokenizer)) if "\ufffd" not in tokenizer.decode([t])]
    wanted = sorted((t for t in readable if t not in special), key=lambda t: -logits[t])
    ((up, down),) = promoted_tokens(model, tokenizer, direction[None], 4)
    assert [one.token for one in up] == [tokenizer.decode([t]) for t in wanted[:4]]
    assert [one.token for one in down] == [tokenizer.decode([t]) for t in wanted[:-5:-1]]
    assert up[0].z > up[-1].z > 0


def test_the_residual_stream_changes_the_logits_so(tokenizer):
    # Added behind the last layer, a small push moves the logits by what is read off, up to r.
    model = tiny_model("llama", causal_lm=True, vocab_size=len(tokenizer))
    head, scale, _ = linear_readout(model)
    push = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    norm, stream = final_norm(model), torch.randn(WIDTH)
    stream -= push * (stream @ push) / (push @ push)  # at a right angle: r stays
    moved = head(norm(stream + 1e-3 * push)) - head(norm(stream))
    read = head(scale * push)
    assert torch.cosine_similarity(moved, read, dim=0) > 0.999


def test_length_and_order_of_directions_do_not_matter(tokenizer):
    model = tiny_model("qwen3", causal_lm=True, vocab_size=len(tokenizer))
    directions = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(2))
    found = promoted_tokens(model, tokenizer, directions)
    turned = promoted_tokens(model, tokenizer, 7 * directions.flip(0))
    assert turned[::-1] == found


def test_a_model_without_an_unembedding_is_refused():
    config = BertConfig(vocab_size=64, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    config.intermediate_size = 8
    with pytest.raises(NoUnembedding, match="BertModel has no unembedding"):
        promoted_tokens(BertModel(config), metaspace_tokenizer(), torch.randn(1, 8))


def test_something_else_before_the_unembedding_is_refused(tokenizer):
    model = tiny_model("llama", causal_lm=True, vocab_size=len(tokenizer))
    model.model.norm = nn.Linear(WIDTH, WIDTH)
    with pytest.raises(NoUnembedding, match="Linear, which is no norm"):
        linear_readout(model)


def test_a_model_without_a_last_norm_is_read_directly(tokenizer):
    model = tiny_model("llama", causal_lm=True, vocab_size=len(tokenizer))
    model.model.norm = nn.Identity()
    _, scale, centred = linear_readout(model)
    assert torch.equal(scale, torch.ones(WIDTH))
    assert not centred


def test_directions_of_another_width_are_refused(tokenizer):
    model = tiny_model("llama", causal_lm=True, vocab_size=len(tokenizer))
    with pytest.raises(NoUnembedding, match="width 7"):
        promoted_tokens(model, tokenizer, torch.randn(1, 7))
