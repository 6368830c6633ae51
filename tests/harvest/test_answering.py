"""Answers that a model samples to prompts."""

import pytest
import torch

from sparsify_crosscoder.harvest.answering import Question, fits, question_batches, write_answers
from tests.support.models import tiny_model
from tests.support.tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
MODELS = {
    kind: tiny_model(kind, causal_lm=True, vocab_size=len(TOKENIZER))
    for kind in ("llama", "gpt2", "gemma3")
}
PROMPTS = ["The quick brown fox", "In 1989 the wall came down; in 1990", "def", "이 문장은 😀"]
QUESTIONS = [Question(TOKENIZER(text)["input_ids"], seed) for seed, text in enumerate(PROMPTS)]


@pytest.mark.parametrize("kind", MODELS)
def test_answers_are_the_same_in_a_batch_and_alone(kind):
    model = MODELS[kind]
    told: list[int] = []
    together = write_answers(model, TOKENIZER, QUESTIONS, 12, told.append)
    alone = [write_answers(model, TOKENIZER, [one], 12)[0] for one in QUESTIONS]
    assert together == alone == write_answers(model, TOKENIZER, QUESTIONS, 12)
    others = [question._replace(seed=question.seed + 100) for question in QUESTIONS]
    assert write_answers(model, TOKENIZER, others, 12) != together
    assert sum(told) == sum(len(one.ids) + one.ended for one in together)


def test_a_token_is_what_its_random_number_draws_from_the_models_distribution():
    model, (question, *_) = MODELS["llama"], QUESTIONS
    (answer,) = write_answers(model, TOKENIZER, [question], 6)
    draws = torch.rand(6, generator=torch.Generator().manual_seed(question.seed))
    ids = list(question.ids)
    for token, draw in zip(answer.ids, draws, strict=False):
        with torch.inference_mode():
            shares = model(torch.tensor([ids])).logits[0, -1].softmax(-1)
        before = float(shares[:token].sum())
        assert before - 1e-5 <= float(draw) <= before + float(shares[token]) + 1e-5
        ids.append(token)


def test_an_answer_stops_where_the_model_ends_it():
    model = tiny_model("llama", causal_lm=True, vocab_size=len(TOKENIZER))
    with torch.no_grad():
        model.lm_head.weight.zero_()  # every token is as likely
    end = TOKENIZER.eos_token_id
    model.generation_config.eos_token_id = [end, *range(100, 300)]
    answers = write_answers(model, TOKENIZER, QUESTIONS, 40)
    assert all(one.ended and len(one.ids) < 40 for one in answers)
    assert all(end not in one.ids and not {*one.ids} & {*range(100, 300)} for one in answers)


def test_questions_of_like_length_are_asked_together():
    lengths = [5, 900, 6, 1000, 5, 30_000, 60_000]
    assert question_batches(lengths, 256) == [[0, 4, 2, 1, 3], [5], [6]]
    assert [len(batch) for batch in question_batches([9] * 130, 16)] == [64, 64, 2]
    assert question_batches([], 16) == []


def test_a_prompt_needs_room_for_its_answer():
    model = MODELS["llama"]  # of 512 positions
    assert fits(model, Question([1] * 500, 0), 12) and not fits(model, Question([1] * 501, 0), 12)
