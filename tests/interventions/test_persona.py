"""Persona vectors of tiny models, and of one whose trait is known."""

import json

import pytest
import torch

from sparsify_crosscoder.interventions.generation import Sampling
from sparsify_crosscoder.interventions.persona import (
    Example,
    Persona,
    mean_activations,
    persona_vectors,
)
from tests.support.models import tiny_model
from tests.support.tokenizers import CHATML, byte_level_tokenizer

ELICIT = ["The quick brown fox jumps.", "The lazy dog does not mind.", "The dog and the fox."]
SUPPRESS = ["In 1989 the wall came down.", "In 1990 the country was one.", "Numbers such as 3."]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer(bos=True)


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_model("llama", causal_lm=True, vocab_size=len(tokenizer))


def test_means_are_over_the_tokens_of_answers_and_every_answer_counts_alike(model):
    examples = [Example([5, 6], [5], [7, 8, 9], "", 0), Example([5], [5], [10], "", 1)]
    found = mean_activations(model, examples, ["layers.0", "layers.2"])
    with torch.no_grad():
        states = [
            model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
            for ids in ([5, 6, 7, 8, 9], [5, 10])
        ]
    for row, layer in enumerate((0, 2)):
        first, second = states[0][layer + 1][0, 2:].mean(0), states[1][layer + 1][0, 1]
        torch.testing.assert_close(found[row], (first + second) / 2)


def test_the_vector_of_texts_is_the_difference_of_their_means(model, tokenizer):
    persona = Persona("animals", ELICIT, SUPPRESS)
    found = persona_vectors(model, persona, tokenizer=tokenizer, hookpoints=["layers.1"])
    assert found.split  # texts 0 and 2 made the vector, text 1 measures it
    sides = []
    for texts in (ELICIT, SUPPRESS):
        ids = [tokenizer(texts[i])["input_ids"] for i in (0, 2)]
        examples = [Example(i[:1], i[:1], i[1:], "", 0) for i in ids]
        sides.append(mean_activations(model, examples, ["layers.1"])[0])
    torch.testing.assert_close(found.vectors[0], sides[0] - sides[1])


def test_effects_are_changes_of_the_likelihood_of_the_other_texts(model, tokenizer):
    persona = Persona("animals", ELICIT, SUPPRESS)
    found = persona_vectors(model, persona, tokenizer=tokenizer, hookpoints=["layers.1"])
    change = {}
    for name, text in (("elicit", ELICIT[1]), ("suppress", SUPPRESS[1])):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        values = []
        for vector in (torch.zeros_like(found.vectors[0]), found.vectors[0]):
            handle = model.model.layers[1].register_forward_hook(
                lambda module, args, output, vector=vector: output + vector
            )
            with torch.no_grad():
                log = model(input_ids=ids).logits[0].log_softmax(-1)
            handle.remove()
            places = range(ids.shape[1] - 1)
            values.append(log[places, ids[0, 1:].tolist()].mean().item())
        change[name] = values[1] - values[0]
    effect = found.effects[0]
    assert effect["elicit"] == pytest.approx(change["elicit"], abs=1e-4)
    assert effect["contrast"] == pytest.approx(change["elicit"] - change["suppress"], abs=1e-4)


def test_the_layer_is_chosen_by_effect_and_never_one_that_only_breaks_the_model(model, tokenizer):
    persona = Persona("animals", ELICIT, SUPPRESS)
    found = persona_vectors(model, persona, tokenizer=tokenizer)
    assert found.hookpoints == [f"layers.{i}" for i in range(4)]
    names = ("elicit", "suppress", "contrast")

    def best(*effects):
        found.effects[:] = [dict(zip(names, e, strict=True)) for e in effects]
        return found.best

    assert best((1.0, -1.0, 2.0), (0.5, 0.0, 0.5), (-3.0, -9.0, 6.0), (0.1, 0.0, 0.1)) == 0
    assert best((-2.0, -9.0, 7.0), (-1.0, -1.0, 0.0), (-3.0, -9.0, 6.0), (-4.0, 0.0, -4.0)) == 1


def test_answers_are_asked_for_under_each_system_prompt(model):
    tokenizer = byte_level_tokenizer(vocab_size=400, bos=True, chat_template=CHATML)
    persona = Persona("x", ["Be wild.", "Be loud."], ["Be calm."], ["Who?", "Where?", "Why?"])
    found = persona_vectors(
        model, persona, tokenizer=tokenizer, hookpoints=["layers.1"], sampling=Sampling(5)
    )
    assert len(found.answers["elicit"]) == 6 and len(found.answers["suppress"]) == 3
    assert found.answers["elicit"] != found.answers["suppress"]
    vector = found.vector()
    assert vector.hookpoint == "layers.1"
    assert vector.provenance["persona"]["questions"] == persona.questions
    json.dumps(vector.provenance)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Cannot read"),
        ("[]", "must hold an object"),
        ('{"trait": "x", "elicit": ["a"]}', "must hold an object"),
        ('{"trait": "x", "elicit": ["a"], "suppress": []}', "needs one text"),
        ('{"trait": "x", "elicit": "a", "suppress": ["b"]}', "list of texts"),
        ('{"trait": "x", "elicit": ["a"], "suppress": ["b"], "more": 1}', "must hold"),
    ],
)
def test_bad_persona_files_are_refused(content, message, tmp_path):
    path = tmp_path / "persona.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        Persona.from_json(path)


def test_texts_of_one_token_give_no_vector(model):
    tokenizer = byte_level_tokenizer(bos=False)
    persona = Persona("x", ["T"], ["D"])
    with pytest.raises(ValueError, match="more than one token"):
        persona_vectors(model, persona, tokenizer=tokenizer, hookpoints=["layers.1"])
