"""Answers for causes: where latents of a run are most active, by both models."""

from collections import Counter, defaultdict

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparsify_crosscoder import Run
from sparsify_crosscoder.evaluation.top import collect_occurrences
from sparsify_crosscoder.interventions.cause_texts import own_answers, strongest_prompts
from sparsify_crosscoder.interventions.generation import Answering, Sampling, generate


@pytest.fixture(scope="module")
def opened(twins) -> Run:
    return Run.open(twins)


@pytest.fixture(scope="module")
def activity(opened):
    """Mean activity of each latent by text, worked out entry by entry."""
    first = opened.first_pairs(100_000, "cpu")
    found = collect_occurrences(opened.crosscoder(), first.chunks, 2.0)
    ids = first.windows["text_id"][:]
    texts = [ids[window] for window in found.windows.tolist()]
    pairs = Counter(texts)
    sums: dict[int, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for act, latent, row in zip(
        found.acts.tolist(), found.latents.tolist(), found.rows.tolist(), strict=True
    ):
        sums[latent][texts[row]] += act / pairs[texts[row]]
    return sums


def test_prompts_are_the_beginnings_of_the_texts_where_a_latent_is_most_active(opened, activity):
    latent = max(activity, key=lambda i: len(activity[i]))
    ranked = sorted(activity[latent], key=lambda text: -activity[latent][text])
    texts = opened.texts()["text"]
    halves = {i: texts[i][: len(texts[i]) // 2].rstrip() for i in ranked}
    distinct = list(dict.fromkeys(halves.values()))
    assert strongest_prompts(opened, [latent], 3, device="cpu") == distinct[:3]
    strongest = {i for i, half in halves.items() if half == distinct[0]}
    without = strongest_prompts(opened, [latent], 2, leave_out=strongest, device="cpu")
    assert without == distinct[1:3]
    with pytest.raises(ValueError, match=r"latents 0\.\.63"):
        strongest_prompts(opened, [64], device="cpu")


def test_both_models_answer_the_same_prompts(opened):
    base, tuned = (AutoModelForCausalLM.from_pretrained(end.model) for end in opened.ends)
    tokenizer = AutoTokenizer.from_pretrained(opened.ends[0].model)
    prompts = ["The quick brown", "In 1989", "She told him"]
    sampling = Sampling(max_new_tokens=12, temperature=1.0, seed=3)
    found = own_answers(tuned, base, tokenizer, prompts, sampling, chat=False)
    assert found.shown
    assert [one.prompt for one in found.shown] == [one.prompt for one in found.elsewhere]
    for part, model in ((found.shown, tuned), (found.elsewhere, base)):
        answers = generate(
            model, prompts, [], [[]], sampling, tokenizer=tokenizer, answering=Answering(chat=False)
        ).answers
        said = {prompt: row[0].text for prompt, row in zip(prompts, answers, strict=True)}
        assert part == [(one.prompt, said[one.prompt]) for one in part]
    same = own_answers(base, base, tokenizer, prompts, sampling, chat=False)
    assert same.shown == same.elsewhere == []
