"""Detection on passages that an explanation was not written from."""

import asyncio

import pytest

from delphi_adapters.explaining.held_out import (
    HeldOut,
    held_out_detection,
    kept_passages,
    load,
    save,
)
from delphi_adapters.explaining.interpretability import InterpretabilityFilter
from tests.delphi_adapters.explaining.test_interpretability import Judge, make_record, perfect
from tests.support.tokenizers import byte_level_tokenizer

from delphi_adapters.delphi.compat import TokenwiseTokenizer  # isort: skip


@pytest.fixture(scope="module")
def tokenizer():
    return TokenwiseTokenizer(byte_level_tokenizer())


def asked(record, tokenizer, sees, **kwargs):
    judge = Judge(sees)
    test = InterpretabilityFilter(judge, tokenizer=tokenizer, **kwargs)
    return asyncio.run(held_out_detection(test, record)), judge


def ranks(judge):
    """Ranks of the passages shown, of which the strongest has rank 1."""
    return sorted(100 - int(text.split()[-1]) for text in judge.texts if "fox" in text)


def test_ranks_11_to_20_and_one_of_each_tenth_of_the_rest_are_shown(tokenizer):
    found, judge = asked(make_record(tokenizer, n_active=100), tokenizer, perfect)
    shown = ranks(judge)
    assert shown[:10] == list(range(11, 21))
    assert [(rank - 21) // 8 for rank in shown[10:]] == list(range(10))
    assert [len(batch) for batch in judge.shown] == [5] * 6
    assert found == HeldOut(1.0, 1.0)


def test_an_explanation_that_holds_of_the_next_ranks_alone_fails_on_weaker_ones(tokenizer):
    def narrow(text):
        return "fox" in text and int(text.split()[-1]) >= 80

    found, _ = asked(make_record(tokenizer, n_active=100), tokenizer, narrow)
    assert (found.next_ranks, found.quantiles) == (1.0, 0.5)


def test_a_latent_with_few_passages_is_tested_on_what_there_is(tokenizer):
    found, judge = asked(make_record(tokenizer, n_active=29), tokenizer, perfect)
    assert (found.next_ranks, found.quantiles) == (1.0, None)
    assert [len(batch) for batch in judge.shown] == [5] * 4
    found, judge = asked(make_record(tokenizer, n_active=19), tokenizer, perfect)
    assert found.not_scorable == "19 activating examples, fewer than the 20 needed"
    assert found.final and not judge.shown


def test_batches_fit_whatever_the_number_of_examples_at_once(tokenizer):
    _, judge = asked(make_record(tokenizer, n_active=100), tokenizer, perfect, n_examples_shown=4)
    assert {len(batch) for batch in judge.shown} == {2} and len(judge.texts) == 30


def test_a_silent_judge_is_asked_again_and_unanswered_passages_are_wrong(tokenizer):
    record = make_record(tokenizer, n_active=100)
    found, _ = asked(record, tokenizer, lambda text: None)
    assert (found.next_ranks, found.n_unanswered, found.final) == (None, 30, False)
    lost = []

    def sees(text):
        lost.append(text)
        return None if len(lost) <= 5 else perfect(text)

    found, _ = asked(record, tokenizer, sees)
    assert found.n_unanswered == 5 and found.final
    assert found.next_ranks != 1 or found.quantiles != 1


def test_what_is_kept_of_a_latents_passages_is_what_both_tests_show(tokenizer):
    record = make_record(tokenizer, n_active=100)
    whole, first = asked(record, tokenizer, perfect)
    record.examples = kept_passages(record.examples, 10, record.latent)
    assert [one.max_activation for one in record.examples[:20]] == list(range(99, 79, -1))
    again, second = asked(record, tokenizer, perfect)
    assert again == whole and second.shown == first.shown


def test_results_are_read_as_they_were_written(tmp_path):
    found = {"a_latent1": HeldOut(0.75, None, 2), "b_latent2": HeldOut(None, not_scorable="few")}
    for name, one in found.items():
        save(one, name, tmp_path)
    assert load(tmp_path) == found
