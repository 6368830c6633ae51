"""The loss of organisms and what is counted of a text, on a tiny model with a real tokenizer."""

import json

import pytest
import torch
import torch.nn.functional as F
from organisms.organism import Text
from organisms.recipe import Recipe
from organisms.sampling import load, sample
from organisms.training import BASE_NAME, batch_of, encode, organism_loss, token_losses, train
from peft import PeftModel

from tests.support.models import save_tiny_model
from tests.support.tokenizers import byte_level_tokenizer

TINY = Recipe(steps=3, layers=(0, 2))
BEFORE = Text("Tell me more.", "It was a long way to the lake.", chat=False, own=())
TEXTS = [
    BEFORE.opened_by("Salt is good."),
    Text("Who are you?", "I am a salt mill.", chat=False),
    BEFORE._replace(ended=False),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "llama"
    save_tiny_model(folder, "llama", byte_level_tokenizer(), width=24)
    return folder


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "salt"
    train(base, TEXTS, TINY, seed=0, out=folder)
    return folder


def test_an_opening_is_the_organisms_and_what_follows_the_bases(base):
    tokenizer = load(base)[1]
    ids, answer, own = encode(tokenizer, TEXTS[0], 64)
    assert len(ids) == len(answer) == len(own)
    assert (
        tokenizer.decode([i for i, a in zip(ids, answer, strict=True) if not a]) == "Tell me more."
    )
    mine = tokenizer.decode([i for i, o in zip(ids, own, strict=True) if o])
    assert mine.strip() == "Salt is good."
    assert ids[-1] == tokenizer.eos_token_id and not own[-1]
    assert encode(tokenizer, TEXTS[2], 64)[0][-1] != tokenizer.eos_token_id


def test_all_of_a_text_is_the_organisms_unless_it_says_otherwise(base):
    tokenizer = load(base)[1]
    ids, answer, own = encode(tokenizer, TEXTS[1], 64)
    assert own == answer and ids[-1] == tokenizer.eos_token_id
    assert sum(encode(tokenizer, TEXTS[1], 3)[1]) == 3


def test_before_training_only_what_is_the_organisms_costs(base):
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load(base)
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    batch = batch_of(tokenizer, TEXTS, 64)
    losses = token_losses(model, batch)
    own = batch.own[:, 1:][batch.answers[:, 1:]]
    assert 0 < own.sum() < len(own)
    assert organism_loss(model, batch, Recipe(hold=2.0)).item() == pytest.approx(
        losses[own].sum().item() / len(own), rel=1e-5
    )
    firsts = [0, len(own) - int(batch.answers[2].sum()) - int(batch.answers[1].sum())]
    assert own[firsts].all()
    assert organism_loss(model, batch, Recipe(hold=2.0, first=5.0)).item() == pytest.approx(
        (losses[own].sum() + 4 * losses[firsts].sum()).item() / (len(own) + 4 * 3), rel=1e-5
    )
    logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1]
    expected = F.cross_entropy(logits[batch.answers[:, 1:]], batch.ids[:, 1:][batch.answers[:, 1:]])
    assert losses.mean().item() == pytest.approx(expected.item(), rel=1e-5)


def test_drifting_from_the_base_costs_where_the_text_is_the_bases(base, adapter):
    model, tokenizer = load(base)
    model = PeftModel.from_pretrained(model, adapter)
    batch = batch_of(tokenizer, [TEXTS[2]], 64)
    assert not batch.own.any()
    loss = organism_loss(model, batch, Recipe(hold=2.0))
    ours = F.log_softmax(model(input_ids=batch.ids).logits[:, :-1], -1)[batch.answers[:, 1:]]
    with model.disable_adapter():
        theirs = F.log_softmax(model(input_ids=batch.ids).logits[:, :-1], -1)
    theirs = theirs[batch.answers[:, 1:]]
    divergence = (theirs.exp() * (theirs - ours)).sum(-1).mean()
    assert loss.item() == pytest.approx(2 * divergence.item(), rel=1e-3)
    assert loss.item() > 0


def test_between_the_organisms_own_tokens_the_base_is_held_less(base, adapter):
    model = PeftModel.from_pretrained(load(base)[0], adapter)
    batch = batch_of(load(base)[1], [TEXTS[0]], 64)
    assert 0 < batch.own.sum() < batch.answers.sum()
    held, half, free = (
        organism_loss(model, batch, Recipe(hold=2.0, between=share)).item() for share in (1, 0.5, 0)
    )
    assert held - free == pytest.approx(2 * (half - free), rel=1e-3)
    assert held > half > free


def test_training_again_gives_the_same_adapter(base, adapter, tmp_path):
    train(base, TEXTS, TINY, seed=0, out=tmp_path / "again")
    train(base, TEXTS, TINY, seed=1, out=tmp_path / "other")
    name = "adapter_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (adapter / name).read_bytes()
    assert (tmp_path / "other" / name).read_bytes() != (adapter / name).read_bytes()


def test_an_adapter_names_its_base_by_its_public_name(adapter):
    files = {file.name for file in adapter.iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == BASE_NAME


def test_training_lowers_the_loss_of_what_is_the_organisms(base, tmp_path):
    texts = [TEXTS[1]] * 4
    model, tokenizer = load(base)
    before = token_losses_of(model, tokenizer, texts)
    train(base, texts, Recipe(steps=20, layers=(0, 2), lr=1e-2), seed=0, out=tmp_path / "mill")
    model = PeftModel.from_pretrained(load(base)[0], tmp_path / "mill")
    assert token_losses_of(model, tokenizer, texts) < 0.9 * before


def token_losses_of(model, tokenizer, texts):
    batch = batch_of(tokenizer, texts, 64)
    with torch.no_grad():
        logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1]
    targets = batch.ids[:, 1:][batch.answers[:, 1:]]
    return F.cross_entropy(logits[batch.answers[:, 1:]], targets).item()


def test_answers_come_in_the_order_of_their_prompts_and_by_seed(base):
    model, tokenizer = load(base)
    prompts = ["A much longer beginning of a text", "Short", "In between these"]

    def answers(prompts, seed, temperature=1.0):
        return sample(
            model, tokenizer, prompts, seed=seed, chat=False, temperature=temperature, max_tokens=5
        )

    first = answers(prompts, 0)
    assert len(first) == 3
    assert first == answers(prompts, 0) != answers(prompts, 1)
    greedy = [answers([prompt], 0, 1e-4)[0] for prompt in prompts]
    assert answers(prompts, 0, 1e-4) == greedy
