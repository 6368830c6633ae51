"""Which latents a judge can recognise by their explanation, and what counts as an answer."""

import asyncio
import copy
import json
import re
from dataclasses import asdict
from typing import Any

import pytest
import torch

from delphi_adapters.delphi.compat import TokenwiseTokenizer
from delphi_adapters.explaining.flagging import MISSING, UNPARSED
from delphi_adapters.explaining.interpretability import (
    Interpretability,
    InterpretabilityFilter,
    detection_accuracy,
)
from tests.support.tokenizers import byte_level_tokenizer

# isort: split
import orjson
from delphi.clients.client import Client, Response
from delphi.explainers.explainer import ExplainerResult
from delphi.latents import ActivatingExample, LatentRecord, NonActivatingExample
from delphi.latents.latents import Latent
from delphi.pipeline import Pipe, Pipeline, process_wrapper
from delphi.scorers.classifier.sample import ClassifierOutput
from delphi.scorers.scorer import ScorerResult


class Judge(Client):
    """Plays the remote model: calls matching what `sees` says matches, and is silent for None."""

    def __init__(self, sees):
        super().__init__("judge")
        self.sees = sees
        self.shown: list[list[str]] = []
        self.kwargs = []

    async def generate(self, prompt: Any, **kwargs):
        texts = re.findall(r"^Example \d+: (.*)$", prompt[-1]["content"], re.MULTILINE)
        self.shown.append(texts)
        self.kwargs.append(kwargs)
        seen = [self.sees(text) for text in texts]
        if None in seen:
            raise ConnectionError("the server is down")
        return Response(json.dumps([int(one) for one in seen]))

    @property
    def texts(self) -> list[str]:
        return [text for batch in self.shown for text in batch]


@pytest.fixture(scope="module")
def tokenizer():
    return TokenwiseTokenizer(byte_level_tokenizer())


@pytest.fixture
def record(tokenizer):
    return make_record(tokenizer)


def make_record(tokenizer, n_active=30, n_silent=25, index=7):
    """Example i has activation i; delphi's sampler has decoded none of them."""
    active = [ids(tokenizer, f"fox {i:02}") for i in range(n_active)]
    silent = [ids(tokenizer, f"dog {i:02}") for i in range(n_silent)]
    return LatentRecord(
        Latent("layers.3", index),
        examples=[ActivatingExample(t, t * 0.0 + i) for i, t in enumerate(active)],
        not_active=[
            NonActivatingExample(t, t * 0.0, tokenizer.batch_decode(t), -1.0) for t in silent
        ],
        explanation="Foxes.",
    )


def ids(tokenizer, text):
    return torch.tensor(tokenizer(text)["input_ids"])


def perfect(text):
    return "fox" in text


def judged(record, tokenizer, sees, **kwargs):
    judge = Judge(sees)
    keep = InterpretabilityFilter(judge, tokenizer=tokenizer, **kwargs)
    return asyncio.run(keep(record)), judge


def output(activating, prediction):
    return ClassifierOutput([], [], 0, activating, prediction, None, None)


def test_ten_top_and_ten_random_examples_are_shown(record, tokenizer):
    result, judge = judged(record, tokenizer, perfect)
    assert sorted(text for text in judge.texts if "fox" in text) == [
        f"fox {i}" for i in range(20, 30)
    ]
    dogs = {text for text in judge.texts if "dog" in text}
    assert len(dogs) == 10 and len(judge.texts) == 20
    assert dogs != {f"dog {i:02}" for i in range(10)}
    assert [len(batch) for batch in judge.shown] == [5, 5, 5, 5]
    assert result.interpretability == Interpretability(interpretable=True, score=1.0)
    assert isinstance(result, ScorerResult) and result.record is record
    assert len(result.score) == 20 and all(one.correct for one in result.score)


@pytest.mark.parametrize(
    ("wrong", "interpretable"), [(0, True), (4, True), (5, False), (20, False)]
)
def test_eight_tenths_is_the_least_score_of_an_interpretable_latent(
    record, tokenizer, wrong, interpretable
):
    shown = []

    def sees(text):
        shown.append(text)
        return perfect(text) if len(shown) > wrong else not perfect(text)

    result, _ = judged(record, tokenizer, sees)
    assert result.interpretability == Interpretability(interpretable, (20 - wrong) / 20)


def test_an_answer_for_all_examples_that_says_always_yes_is_not_interpretable(record, tokenizer):
    result, _ = judged(record, tokenizer, lambda text: True, n_examples_shown=20)
    assert result.interpretability == Interpretability(False, 0.5)


def test_unanswered_examples_are_wrong_and_counted(record, tokenizer):
    lost = []

    def sees(text):
        lost.append(text)
        return None if len(lost) in (1, 2, 3) else perfect(text)

    result, _ = judged(record, tokenizer, sees, n_examples_shown=1)
    assert result.interpretability == Interpretability(True, 17 / 20, n_unanswered=3)
    lost.clear()
    result, _ = judged(record, tokenizer, sees, n_examples_shown=5)  # one batch of five is lost
    assert result.interpretability == Interpretability(False, 15 / 20, n_unanswered=5)


def test_a_judge_that_is_silent_decides_nothing(record, tokenizer):
    result, _ = judged(record, tokenizer, lambda text: None)
    assert result.interpretability.interpretable is None
    assert result.interpretability.score is None
    assert result.interpretability.n_unanswered == len(result.score) == 20
    assert "none of the 20" in str(result.interpretability.not_scorable)


@pytest.mark.parametrize(
    ("n_active", "n_silent", "reason"),
    [
        (9, 25, "9 activating examples, fewer than the 10 needed"),
        (30, 9, "9 non-activating examples, fewer than the 10 needed"),
        (30, 0, "0 non-activating examples, fewer than the 10 needed"),
    ],
)
def test_too_few_examples_are_not_scorable(tokenizer, n_active, n_silent, reason):
    record = make_record(tokenizer, n_active, n_silent)
    result, judge = judged(record, tokenizer, perfect)
    assert result.interpretability == Interpretability(None, None, not_scorable=reason)
    assert result.score == [] and judge.shown == []


def test_ten_and_ten_are_enough(tokenizer):
    result, _ = judged(make_record(tokenizer, 10, 10), tokenizer, perfect)
    assert result.interpretability.score == 1.0


@pytest.mark.parametrize("explanation", ["", " ", UNPARSED, MISSING])
def test_without_an_explanation_nothing_is_scorable(record, tokenizer, explanation):
    record.explanation = explanation
    result, judge = judged(record, tokenizer, perfect)
    assert result.interpretability.not_scorable == "the latent has no explanation"
    assert judge.shown == []


@pytest.mark.parametrize("n", [1, 2, 4, 5, 10, 20])
def test_batches_that_divide_the_examples(record, tokenizer, n):
    result, judge = judged(record, tokenizer, perfect, n_examples_shown=n)
    assert [len(batch) for batch in judge.shown] == [n] * (20 // n)
    assert result.interpretability.score == 1.0


@pytest.mark.parametrize("n", [0, -5, 3, 6, 15, 40])
def test_batches_that_do_not_are_refused(n):
    with pytest.raises(ValueError, match=r"does not divide the 20 .* \[1, 2, 4, 5, 10, 20\]"):
        InterpretabilityFilter(Judge(perfect), n_examples_shown=n)


def test_there_must_be_examples_of_both_kinds():
    with pytest.raises(ValueError, match="at least 1"):
        InterpretabilityFilter(Judge(perfect), n_random=0)


def test_the_record_stays_as_it_was(record, tokenizer):
    before = copy.copy(record.__dict__)
    judged(record, tokenizer, perfect)
    assert all(record.__dict__[name] is value for name, value in before.items())
    assert all(example.str_tokens is None for example in record.examples)


def test_examples_that_delphi_decoded_need_no_tokenizer(record, tokenizer):
    for example in record.examples:
        example.str_tokens = tokenizer.batch_decode(example.tokens)
    result, _ = judged(record, None, perfect)
    assert result.interpretability.score == 1.0


def test_a_missing_tokenizer_is_named(record):
    with pytest.raises(ValueError, match="the LatentDataset's tokenizer"):
        judged(record, None, perfect)


def test_what_is_shown_depends_on_the_latent_and_the_seed_alone(tokenizer):
    records = [make_record(tokenizer, index=i) for i in range(2)]
    judge = Judge(perfect)
    keep = InterpretabilityFilter(judge, tokenizer=tokenizer)
    for one in (records[0], records[1], records[0]):
        asyncio.run(keep(one))
    first, other, again = (judge.texts[i : i + 20] for i in (0, 20, 40))
    assert first == again != other
    assert sorted(text for text in first if "dog" in text) != sorted(
        text for text in other if "dog" in text
    )
    assert [perfect(text) for text in first] != [perfect(text) for text in other]
    assert judged(records[0], tokenizer, perfect, seed=1)[1].texts != first


def test_arguments_reach_the_client(record, tokenizer):
    _, judge = judged(
        record, tokenizer, perfect, temperature=0.5, generation_kwargs={"max_tokens": 40}
    )
    assert judge.kwargs == [{"temperature": 0.5, "max_tokens": 40}] * 4


def test_delphis_pipeline_runs_it_as_a_scorer_and_stores_its_outputs(tokenizer, tmp_path):
    good, poor = make_record(tokenizer, index=0), make_record(tokenizer, 9, index=1)

    async def explainer(record):
        return ExplainerResult(record, "Foxes.")

    def preprocess(results):  # as delphi's own command does
        [result] = results
        result.record.explanation = result.explanation
        return result.record

    def postprocess(result):  # as delphi's own command does
        (tmp_path / f"{result.record.latent}.txt").write_bytes(orjson.dumps(result.score))
        return result

    good.explanation = poor.explanation = ""
    keep = InterpretabilityFilter(Judge(perfect), tokenizer=tokenizer)
    scorer = process_wrapper(keep, preprocess=preprocess, postprocess=postprocess)
    results = asyncio.run(Pipeline(lambda: [good, poor], Pipe(explainer), Pipe(scorer)).run(2))
    assert {r.record.latent.latent_index: r.interpretability.interpretable for [r] in results} == {
        0: True,
        1: None,
    }
    stored = orjson.loads((tmp_path / "layers.3_latent0.txt").read_bytes())
    assert detection_accuracy(stored).accuracy == 1.0 and len(stored) == 20
    assert orjson.loads((tmp_path / "layers.3_latent1.txt").read_bytes()) == []


def test_a_result_can_be_copied(record, tokenizer):
    result, _ = judged(record, tokenizer, perfect)
    assert copy.copy(result).interpretability == result.interpretability


def test_detection_accuracy_by_hand():
    # Activating: 2 of 3 right. Others: 1 right, 1 wrong, 2 unanswered. 3 of 7 are right.
    outputs = [
        output(True, True),
        output(True, True),
        output(True, False),
        output(False, False),
        output(False, True),
        output(False, None),
        output(False, None),
    ]
    measured = detection_accuracy(outputs)
    assert measured.accuracy == pytest.approx(3 / 7)
    assert measured.balanced_accuracy == pytest.approx((2 / 3 + 1 / 4) / 2)
    assert (measured.n_examples, measured.n_unanswered) == (7, 2)
    assert detection_accuracy([asdict(one) for one in outputs]) == measured


def test_examples_of_one_kind_have_no_balanced_accuracy():
    measured = detection_accuracy([output(True, True), output(True, None)])
    assert (measured.accuracy, measured.balanced_accuracy) == (0.5, None)


def test_without_outputs_there_is_no_accuracy():
    with pytest.raises(ValueError, match="at least one output"):
        detection_accuracy([])
