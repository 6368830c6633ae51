"""Up to which strength steered answers are text, beside the same measured strength by strength."""

import pytest
import torch

from sparsify_crosscoder.interventions.coherence import CoherenceTest, coherent_strength
from sparsify_crosscoder.interventions.generation import Sampling, generate
from sparsify_crosscoder.interventions.steering import Steering
from tests.support.models import tiny_model
from tests.support.tokenizers import byte_level_tokenizer

PROMPTS = ["The quick brown fox", "In 1989 the wall came down; in 1990"]
SAMPLING = Sampling(max_new_tokens=12)
MOST = 8.0


@pytest.fixture(scope="module")
def parts():
    tokenizer = byte_level_tokenizer(bos=True)
    torch.manual_seed(0)
    return tiny_model("llama", causal_lm=True, vocab_size=len(tokenizer)), tokenizer


def steering(scale: float) -> Steering:
    return Steering(
        torch.randn(32, generator=torch.Generator().manual_seed(1)), "layers.1", scale=scale
    )


def likelihood(model, tokenizer, prompt, tokens) -> float:
    """Mean log-likelihood of an answer's tokens, by one whole forward."""
    ids = tokenizer(prompt)["input_ids"]
    whole = torch.tensor([ids + tokens])
    with torch.no_grad():
        log_p = model(input_ids=whole, use_cache=False).logits[0].log_softmax(-1)
    places = range(len(ids), whole.shape[1])
    return sum(float(log_p[i - 1, whole[0, i]]) for i in places) / len(places)


def test_what_changes_nothing_is_coherent_at_the_largest_strength(parts):
    model, tokenizer = parts
    found = coherent_strength(
        model, PROMPTS, steering(1e-6), SAMPLING, CoherenceTest(MOST), tokenizer=tokenizer
    )
    assert found.strength == MOST and len(found.tried) == 2
    assert found.tried[0][1:] == found.tried[1][1:]
    assert found.doses(5) == [0.0, 2.0, 4.0, 6.0, 8.0]


def test_the_strength_is_where_answers_stop_being_likely(parts):
    model, tokenizer = parts
    strong, test = steering(4.0), CoherenceTest(MOST, nats=0.05, repetition=1.0)
    found = coherent_strength(model, PROMPTS, strong, SAMPLING, test, tokenizer=tokenizer)
    assert 0 <= found.strength < MOST
    strengths = [0.0, *(strength for strength, *_ in found.tried[1:])]
    answers = generate(model, PROMPTS, strong, strengths, SAMPLING, tokenizer=tokenizer).answers
    expected = [
        sum(
            likelihood(model, tokenizer, prompt, row[k].tokens)
            for prompt, row in zip(PROMPTS, answers, strict=True)
        )
        / len(PROMPTS)
        for k in range(len(strengths))
    ]
    assert [-one[1] for one in found.tried] == pytest.approx(expected, abs=1e-3)
    least = expected[0] - 0.05
    passed = [s for s, value in zip(strengths, expected, strict=True) if value >= least]
    failed = [s for s in strengths if s not in passed]
    assert max(s for s in passed if s <= found.strength) == pytest.approx(found.strength)
    assert min(s for s in failed if s > found.strength) - found.strength <= MOST / 2**4


def test_answers_that_repeat_themselves_are_no_text(parts):
    """A loop is likely: the likelihood alone does not tell."""
    model, tokenizer = parts
    loose = CoherenceTest(MOST, nats=100.0, repetition=1.0)
    strict = CoherenceTest(MOST, nats=100.0, repetition=0.0)
    args = (model, PROMPTS, steering(4.0), SAMPLING)
    assert coherent_strength(*args, loose, tokenizer=tokenizer).strength == MOST
    found = coherent_strength(*args, strict, tokenizer=tokenizer)
    assert any(repeated > found.tried[0][2] for *_, repeated in found.tried[1:])
    assert found.strength < MOST


@pytest.mark.parametrize("wrong", [{"most": 0}, {"nats": -1}, {"repetition": 2}])
def test_a_bound_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match="positive"):
        CoherenceTest(**wrong)
