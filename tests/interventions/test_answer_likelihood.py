"""Likelihoods of given answers, against forwards of one text each, without padding or shortcuts."""

import pytest
import torch

from sparsify_crosscoder.interventions.answer_likelihood import Answered, GivenAnswers
from sparsify_crosscoder.interventions.prompts import encode_prompt
from sparsify_crosscoder.interventions.steering import Steering, steered
from tests.support.models import tiny_model
from tests.support.tokenizers import byte_level_tokenizer

WIDTH = 32
ANSWERED = [
    Answered("The quick brown", " fox jumps over the lazy dog"),
    Answered("In 1989", " the wall"),
    Answered("A crosscoder reads the activations", " of two models and writes them back."),
    Answered("She", " told him"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer(bos=True)


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma3", "qwen3", "gpt_oss"])
def model(request, tokenizer):
    return tiny_model(request.param, causal_lm=True, vocab_size=len(tokenizer))


@pytest.fixture(scope="module")
def layers(model):
    return "h" if model.config.model_type == "gpt2" else "layers"


def direction(seed=0):
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def one_by_one(model, tokenizer, steering=(), strength=1.0):
    found = []
    for prompt, answer in ANSWERED:
        before = encode_prompt(tokenizer, prompt)
        after = tokenizer(answer, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*before, *after]])
        with torch.no_grad(), steered(model, steering, strength):
            logits = model(input_ids=ids, use_cache=False).logits[0].double()
        places = range(len(before) - 1, len(before) + len(after) - 1)
        found.append(logits.log_softmax(-1)[list(places), after].mean())
    return torch.stack(found).float()


def test_likelihoods_are_those_of_each_text_alone(model, tokenizer, layers):
    given = GivenAnswers(model, tokenizer, ANSWERED, [f"{layers}.2", f"{layers}.3"])
    steering = [Steering(direction(i), f"{layers}.{i}") for i in (2, 3)]
    plain = one_by_one(model, tokenizer)
    pushed = one_by_one(model, tokenizer, steering, 0.7)
    torch.testing.assert_close(given.unsteered, plain, atol=1e-4, rtol=0)
    torch.testing.assert_close(given.likelihoods(steering, 0.7), pushed, atol=1e-4, rtol=0)
    assert (pushed - plain).abs().min() > 0.01


def test_layers_before_the_first_hookpoint_are_not_computed_again(model, tokenizer, layers):
    given = GivenAnswers(model, tokenizer, ANSWERED, [f"{layers}.2"])
    computed = []
    attention = next(n for n, _ in model.base_model.get_submodule(f"{layers}.0").named_children())
    handles = [
        model.base_model.get_submodule(f"{layers}.{i}.{attention}").register_forward_hook(
            lambda module, args, output, i=i: computed.append(i)
        )
        for i in range(4)
    ]
    before = given.likelihoods()
    for handle in handles:
        handle.remove()
    assert set(computed) == {2, 3}
    torch.testing.assert_close(before, given.unsteered, atol=1e-5, rtol=0)
    torch.testing.assert_close(one_by_one(model, tokenizer), before, atol=1e-4, rtol=0)


def test_a_model_that_carries_more_than_a_residual_is_read_in_full(tokenizer):
    """A block that reads what an earlier one left beside the residual stream."""
    model = tiny_model("llama", causal_lm=True, vocab_size=len(tokenizer))
    left = {}
    layers = model.base_model.layers
    layers[0].register_forward_hook(lambda m, args, out: left.update(x=out))
    layers[3].register_forward_hook(lambda m, args, out: out + left["x"].cos())
    given = GivenAnswers(model, tokenizer, ANSWERED, ["layers.2"])
    steering = [Steering(direction(), "layers.2")]
    pushed = one_by_one(model, tokenizer, steering)
    torch.testing.assert_close(given.likelihoods(steering), pushed, atol=1e-4, rtol=0)


def test_replacing_a_direction_by_the_models_own_changes_nothing(model, tokenizer, layers):
    places = [f"{layers}.1", f"{layers}.3"]
    given = GivenAnswers(model, tokenizer, ANSWERED, places)
    own = given.residuals(places)
    steering = [Steering(direction(), place, mode="ablate") for place in places]
    replaced = given.likelihoods(steering, 1.0, own)
    torch.testing.assert_close(replaced, given.unsteered, atol=1e-4, rtol=0)
    others = {place: [x + direction(1) for x in rows] for place, rows in own.items()}
    assert (given.likelihoods(steering, 1.0, others) - given.unsteered).abs().max() > 0.01


def test_tokens_are_those_of_text_without_the_first(model, tokenizer, layers):
    given = GivenAnswers(model, tokenizer, ANSWERED, [f"{layers}.1"])
    tokens = given.tokens(given.residuals([f"{layers}.1"])[f"{layers}.1"])
    rows = []
    for prompt, answer in ANSWERED:
        ids = encode_prompt(tokenizer, prompt)
        ids += tokenizer(answer, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        rows.append(hidden[2][0, 1:])
    expected = torch.cat(rows)
    assert tokens.shape == expected.shape
    nearest = torch.cdist(expected.double(), tokens.double()).min(1).values
    assert nearest.max() < 1e-3


def test_answers_without_tokens_and_other_hookpoints_are_refused(tokenizer):
    model = tiny_model("llama", causal_lm=True, vocab_size=len(tokenizer))
    with pytest.raises(ValueError, match="no tokens"):
        GivenAnswers(model, tokenizer, [Answered("She", "")], ["layers.1"])
    given = GivenAnswers(model, tokenizer, ANSWERED, ["layers.1"])
    with pytest.raises(ValueError, match=r"layers\.0"):
        given.likelihoods([Steering(direction(), "layers.0")])
