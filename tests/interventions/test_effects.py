"""Measures of steering, against values worked out from the models themselves."""

import math

import pytest
import torch

from sparsify_crosscoder.interventions.effects import (
    dose_response,
    next_tokens,
    repetition,
    surprise,
    word_share,
    word_tokens,
)
from sparsify_crosscoder.interventions.generation import Generation, Sampling
from sparsify_crosscoder.interventions.steering import Steering
from tests.support.models import tiny_model
from tests.support.tokenizers import byte_level_tokenizer

WIDTH = 32
PROMPTS = ["The quick brown", "In 1989 the wall"]
WORDS = ["the", "dog"]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer(bos=True)


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def model(request, tokenizer):
    return tiny_model(request.param, causal_lm=True, vocab_size=len(tokenizer))


@pytest.fixture(scope="module")
def steering():
    return Steering(torch.randn(WIDTH, generator=torch.Generator().manual_seed(0)), "layers.1")


def by_hand(model, ids, steering=None, strength=0.0):
    """Log-probabilities of the token after each token, by a hook written here."""
    handles = []
    if steering is not None:
        handles = [
            model.base_model.get_submodule(steering.hookpoint).register_forward_hook(
                lambda module, args, output: output + strength * steering.vector
            )
        ]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    for handle in handles:
        handle.remove()
    return logits.double().log_softmax(-1)


def test_next_tokens_by_their_definitions(model, tokenizer, steering):
    prompt, answer = tokenizer(PROMPTS[0])["input_ids"], [70, 71, 72]
    tokens = [80, 90]
    found = next_tokens(
        model, prompt, answer, [steering], torch.tensor([[0.0], [2.0], [5.0]]), tokens
    )
    plain = by_hand(model, [*prompt, *answer])[-4:]
    for k, strength in enumerate((0.0, 2.0, 5.0)):
        log = by_hand(model, [*prompt, *answer], steering, strength)[-4:]
        p = log.exp()
        assert found["kl"][k].item() == pytest.approx(
            (p * (log - plain)).sum(-1).mean().item(), abs=1e-5
        )
        assert found["entropy"][k].item() == pytest.approx(-(p * log).sum(-1).mean().item(), 1e-4)
        assert found["word_probability"][k].item() == pytest.approx(
            p[:, tokens].sum(-1).mean().item(), 1e-4
        )
    assert found["kl"][0] == 0
    assert found["kl"][2] > found["kl"][1] > 0.01


def test_steering_only_the_answer_leaves_the_first_place_alone(model, tokenizer, steering):
    prompt = tokenizer(PROMPTS[0])["input_ids"]
    generated = Steering(steering.vector, steering.hookpoint, 5.0, tokens="generated")
    doses = torch.tensor([[1.0]])
    assert next_tokens(model, prompt, [], [generated], doses)["kl"].item() == 0
    assert next_tokens(model, prompt, [70], [generated], doses)["kl"].item() > 0.01


def test_surprise_is_the_mean_negative_log_likelihood(model, tokenizer):
    prompt = tokenizer(PROMPTS[1])["input_ids"]
    answers = [[70, 71, 72], [73], []]
    found = surprise(model, prompt, answers).tolist()
    for answer, value in zip(answers[:2], found[:2], strict=True):
        log = by_hand(model, [*prompt, *answer])
        expected = [-log[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer)]
        assert value == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    assert found[2] == 0


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [([], 0), ([1, 2], 0), ([1, 2, 3, 4], 0), ([1] * 6, 0.75), ([1, 2, 3, 1, 2, 3], 0.25)],
)
def test_repetition(tokens, expected):
    assert repetition(tokens) == pytest.approx(expected)


def test_word_share_knows_words_by_their_letters_alone():
    answer = Generation("p", (0.0,), "The dog, the DOG's hotdog and the\ndog.", [], True)
    assert word_share(answer, ["dog"]) == pytest.approx(2 / 8)
    assert word_share(Generation("p", (0.0,), "...", [], True), ["dog"]) == 0


def test_word_tokens_are_whole_words(tokenizer):
    tokens, left_out = word_tokens(tokenizer, ["the", "crosscoderish"])
    assert left_out == ["crosscoderish"]
    assert {tokenizer.decode([t]).strip() for t in tokens} == {"the"}
    with pytest.raises(ValueError, match="single token"):
        word_tokens(tokenizer, ["crosscoderish"])


def test_a_dose_response_holds_everything(model, tokenizer, steering, tmp_path):
    found = dose_response(
        model, PROMPTS, steering, [1.0, 4.0], ["the"], Sampling(6), tokenizer=tokenizer
    )
    assert found.strengths == [(0.0,), (1.0,), (4.0,)]  # the unsteered model came first
    assert all(values.shape == (2, 3) for values in found.measures.values())
    rows = found.rows()
    assert rows[0]["kl"] == 0 and rows[2]["kl"] > rows[1]["kl"] > 0
    assert found.table().count("\n") == 3
    unsteered = found.generations.answers[0][0]
    prompt = found.generations.prompt_tokens[0]
    log = by_hand(model, [*prompt, *unsteered.tokens])[len(prompt) - 1 :]
    tokens, _ = word_tokens(tokenizer, ["the"])
    assert found.measures["word_probability"][0, 0].item() == pytest.approx(
        log.exp()[:, tokens].sum(-1).mean().item(), rel=1e-4
    )
    found.plot(tmp_path / "plot.png", "title")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_without_words_nothing_is_said_of_them(model, tokenizer, steering):
    found = dose_response(
        model, "She", steering, [0.0, 1.0], sampling=Sampling(3), tokenizer=tokenizer
    )
    assert "word_probability" not in found.measures and "word_share" not in found.measures
    assert math.isfinite(found.rows()[1]["surprise"])
