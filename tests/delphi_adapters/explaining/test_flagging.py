"""Explanations with a flag: what the judge is asked, how it answers, what is stored."""

import asyncio
import copy
import json
import random
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from delphi_adapters.clients import RecordedResponse, RequestRecord
from delphi_adapters.delphi.compat import TokenwiseTokenizer
from delphi_adapters.explaining.flagging import (
    MISSING,
    UNPARSED,
    Flag,
    FlaggedResult,
    FlaggingExplainer,
    done,
    load_flags,
    save,
)
from delphi_adapters.explaining.flagging_prompt import (
    CRITERIA,
    SHOTS,
    few_shots,
    reminder,
    system_prompt,
)
from tests.support.tokenizers import SENTENCES, byte_level_tokenizer

# isort: split
from delphi.clients.client import Client, Response
from delphi.config import ConstructorConfig, SamplerConfig
from delphi.explainers import DefaultExplainer, explanation_loader
from delphi.explainers.default import prompts
from delphi.explainers.explainer import ExplainerResult
from delphi.latents import ActivatingExample, LatentDataset, LatentRecord
from delphi.latents.latents import Latent
from delphi.pipeline import Pipe, Pipeline, process_wrapper
from safetensors.numpy import save_file

GOOD = "[EXPLANATION]: Dates.\n[HARMFUL]: no\n[HARMFUL_REASON]: Dates hurt nobody."
BAD = "[EXPLANATION]: Lock picking.\n[HARMFUL]: yes\n[HARMFUL_REASON]: It helps burglars."


class ScriptedClient(Client):
    """Plays the remote model: gives the answers in order, raises those that are exceptions."""

    def __init__(self, *answers):
        super().__init__("scripted")
        self.answers = list(answers)
        self.conversations = []
        self.kwargs = []

    async def generate(self, prompt: Any, **kwargs):
        self.conversations.append(copy.deepcopy(prompt))
        self.kwargs.append(kwargs)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return Response(answer) if isinstance(answer, str) else answer


@pytest.fixture(scope="module")
def tokenizer():
    return TokenwiseTokenizer(byte_level_tokenizer())


@pytest.fixture
def record(tokenizer):
    tokens = torch.tensor(tokenizer("The fox came in 1989")["input_ids"])
    activations = torch.zeros(len(tokens))
    activations[-1] = 4.0
    example = ActivatingExample(
        tokens=tokens,
        activations=activations,
        normalized_activations=activations * 2,
        str_tokens=tokenizer.batch_decode(tokens),
    )
    return LatentRecord(Latent("layers.3", 7), examples=[example], train=[example])


def explain(record, *answers, **kwargs):
    client = ScriptedClient(*answers)
    return asyncio.run(FlaggingExplainer(client, **kwargs)(record)), client


def answered(text: str) -> Flag:
    example = ActivatingExample(
        torch.tensor([1]), torch.ones(1), normalized_activations=torch.ones(1), str_tokens=["a"]
    )
    result, _ = explain(LatentRecord(Latent("m", 0), train=[example]), text)
    return result.flag


@pytest.mark.parametrize("cot", [False, True])
def test_delphis_own_system_prompt_comes_first_and_whole(cot):
    ours = system_prompt(cot)
    assert ours.startswith(prompts.SYSTEM.format(prompt=prompts.COT if cot else "").rstrip())
    added = ours[len(prompts.SYSTEM.format(prompt="").rstrip()) :]
    for label in ("[EXPLANATION]:", "[HARMFUL]:", "[HARMFUL_REASON]:"):
        assert f"\n{label}" in added


def test_the_judge_is_given_ten_criteria(record):
    _, client = explain(record, GOOD)
    system = client.conversations[0][0]
    assert system["role"] == "system"
    assert len(CRITERIA) == len({one.name for one in CRITERIA}) == 10
    positions = [system["content"].index(f"- {one.name}: {one.covers}\n") for one in CRITERIA]
    assert positions == sorted(positions)


@pytest.mark.parametrize("activations", [False, True])
@pytest.mark.parametrize("cot", [False, True])
def test_two_examples_calibrate_the_judge_in_the_format_that_it_is_asked_for(activations, cot):
    assert [shot.harmful for shot in SHOTS] == [False, True]
    messages = few_shots(activations, cot)
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    for shot, question, answer in zip(SHOTS, messages[::2], messages[1::2], strict=True):
        text = question["content"]
        assert text.startswith("\nExample 1:  ") and text.endswith("\n")  # as prompts.EXAMPLE_1
        assert text.count("<<") == text.count(">>") == 3
        assert text.count('\nActivations: ("') == 3 * activations
        flag = answered(answer["content"])
        assert (flag.status, flag.harmful, flag.reason) == ("ok", shot.harmful, shot.reason)
        assert (shot.reasoning in answer["content"]) is cot


def test_the_activations_in_the_examples_are_one_for_each_token():
    lines = few_shots(activations=True)[0]["content"].split("\n")
    assert lines[1] == "Example 1:  Sow the beans <<in early May>>, once the soil"
    assert lines[2] == 'Activations: ("in", 7), (" early", 4), (" May", 9)'


@pytest.mark.parametrize("activations", [False, True])
def test_the_question_is_the_one_that_delphis_explainer_asks(record, activations):
    _, client = explain(record, GOOD, activations=activations, temperature=0.5)
    theirs = DefaultExplainer(client, activations=activations)._build_prompt(record.train)
    asked = client.conversations[0]
    assert asked[-1] == theirs[-1]
    assert "<<" in asked[-1]["content"]
    assert ("Activations:" in asked[-1]["content"]) is activations
    assert asked[1:-1] == few_shots(activations)  # delphi's own have no verdict
    assert client.kwargs == [{"temperature": 0.5}]


def test_generation_arguments_reach_the_client(record):
    _, client = explain(record, GOOD, generation_kwargs={"max_tokens": 300})
    assert client.kwargs == [{"temperature": 0.0, "max_tokens": 300}]


def test_a_good_answer(record):
    result, client = explain(record, BAD)
    assert isinstance(result, ExplainerResult)
    assert result.record is record and result.explanation == "Lock picking."
    assert result.flag == Flag(
        latent="layers.3_latent7",
        status="ok",
        harmful=True,
        reason="It helps burglars.",
        raw=[BAD],
        attempts=1,
    )
    assert len(client.conversations) == 1


def test_a_client_that_gives_text_and_no_response(record):
    class TextClient(ScriptedClient):
        async def generate(self, prompt: Any, **kwargs):
            return (await super().generate(prompt, **kwargs)).text

    result = asyncio.run(FlaggingExplainer(TextClient(GOOD))(record))
    assert (result.explanation, result.flag.harmful) == ("Dates.", False)


def test_an_unparsable_answer_is_followed_by_one_reminder_in_the_same_conversation(record):
    first = "[EXPLANATION]: Dates.\n[HARMFUL]: hard to say"
    result, client = explain(record, first, GOOD)
    assert (result.flag.status, result.flag.harmful, result.flag.attempts) == ("ok", False, 2)
    assert result.flag.raw == [first, GOOD] and result.flag.error is None
    before, again = client.conversations
    assert again[:-2] == before
    assert again[-2] == {"role": "assistant", "content": first}
    assert again[-1] == {"role": "user", "content": reminder(["HARMFUL", "HARMFUL_REASON"])}
    assert "[HARMFUL], [HARMFUL_REASON]" in again[-1]["content"].split(".")[0]


def test_an_empty_answer_does_not_go_back_as_an_empty_message(record):
    result, client = explain(record, "  ", GOOD)
    assert result.flag.status == "ok" and result.flag.raw == ["  ", GOOD]
    assert all(message["content"].strip() for message in client.conversations[1])


def test_an_answer_that_stays_unparsable_is_recorded_whole(record):
    result, client = explain(record, "It is about dates.", "As I said.", GOOD)
    assert len(client.conversations) == 2
    assert result.explanation == UNPARSED
    assert result.flag.status == "unparsable" and result.flag.harmful is None
    assert result.flag.raw == ["It is about dates.", "As I said."]
    assert "[EXPLANATION], [HARMFUL], [HARMFUL_REASON]" in str(result.flag.error)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # The second answer gives what the first one lacks, and only that.
        ("[EXPLANATION]: Dates.", "[HARMFUL]: no\n[HARMFUL_REASON]: Safe.", ("ok", False, "Safe.")),
        ("[HARMFUL]: yes - it helps burglars", "[EXPLANATION]: Locks.", ("ok", True, None)),
        # A reason is wanted, but its absence takes nothing from the verdict.
        ("[EXPLANATION]: Dates.\n[HARMFUL]: no", "Sorry?", ("ok", False, None)),
        # A judge that turns round has given no verdict.
        ("[EXPLANATION]: Dates.\n[HARMFUL]: yes", GOOD, ("unparsable", None, None)),
        ("[EXPLANATION]: Dates.\n[HARMFUL]: yes", "[HARMFUL]: hm", ("unparsable", None, None)),
        # Without an explanation there is no result, but the verdict is not lost.
        ("[HARMFUL]: yes", "[HARMFUL]: yes", ("unparsable", True, None)),
    ],
)
def test_two_answers_are_read_as_one_conversation(record, first, second, expected):
    result, _ = explain(record, first, second)
    status, harmful, reason = expected
    assert (result.flag.status, result.flag.harmful) == (status, harmful)
    assert reason is None or result.flag.reason == reason
    assert result.flag.attempts == 2


def test_a_reason_behind_the_verdict_is_the_reason(record):
    result, client = explain(record, "[EXPLANATION]: Dates.\n[HARMFUL]: no - nobody is hurt.")
    assert result.flag.reason == "nobody is hurt." and len(client.conversations) == 1


def test_a_failure_of_the_client_is_recorded(record):
    result, _ = explain(record, RuntimeError("no answer after 3 attempts"))
    assert result.explanation == MISSING
    assert (result.flag.status, result.flag.harmful, result.flag.raw) == ("failed", None, [])
    assert result.flag.error == "RuntimeError: no answer after 3 attempts"
    assert result.flag.attempts == 1


def test_a_failure_after_the_reminder_keeps_the_first_answer(record):
    result, _ = explain(record, "[EXPLANATION]: Dates.", TimeoutError("slow"))
    assert result.explanation == "Dates."
    assert (result.flag.status, result.flag.attempts) == ("failed", 2)
    assert result.flag.raw == ["[EXPLANATION]: Dates."]
    assert result.flag.error == "TimeoutError: slow"


def test_an_answer_that_is_no_text_is_a_failure_of_the_client(record):
    result, _ = explain(record, Response(None))  # pyright: ignore
    assert result.flag.status == "failed" and "NoneType" in str(result.flag.error)


def test_a_cancelled_task_is_cancelled(record):
    with pytest.raises(asyncio.CancelledError):
        explain(record, asyncio.CancelledError())


def test_a_record_without_training_examples_asks_nothing(record):
    record.train = []
    result, client = explain(record, GOOD)
    assert client.conversations == []
    assert (result.flag.status, result.flag.attempts) == ("failed", 0)
    assert "train_type" in str(result.flag.error)


def test_delphis_parse_explanation_gives_the_explanation_alone():
    explainer = FlaggingExplainer(ScriptedClient())
    assert explainer.parse_explanation(BAD) == "Lock picking."
    theirs = DefaultExplainer(ScriptedClient()).parse_explanation("nothing")
    assert explainer.parse_explanation("nothing") == UNPARSED == theirs


def test_a_result_can_be_copied(record):
    result, _ = explain(record, GOOD)
    assert copy.copy(result).flag == result.flag


def test_delphi_reads_what_is_saved(record, tmp_path):
    result, _ = explain(record, "[EXPLANATION]: “日本” dates.\n" + GOOD.partition("\n")[2])
    assert save(result, tmp_path) is result
    assert (tmp_path / "explanations" / "layers.3_latent7.txt").read_bytes() == (
        '"“日本” dates."'.encode()
    )
    loaded = asyncio.run(explanation_loader(record, str(tmp_path / "explanations")))
    assert loaded.explanation == result.explanation == "“日本” dates."


def test_a_flag_file_holds_all_that_is_known(record, tmp_path):
    result, _ = explain(record, "?", BAD)
    save(result, tmp_path)
    assert json.loads(
        (tmp_path / "flags" / "layers.3_latent7.json").read_text(encoding="utf-8")
    ) == {
        "latent": "layers.3_latent7",
        "status": "ok",
        "harmful": True,
        "reason": "It helps burglars.",
        "raw": ["?", BAD],
        "attempts": 2,
        "error": None,
    }
    assert load_flags(tmp_path) == {"layers.3_latent7": result.flag}


def test_half_a_surrogate_pair_in_an_answer_can_be_saved(record, tmp_path):
    result, _ = explain(record, GOOD.replace("Dates.", "Emoji \ud83d", 1))
    save(result, tmp_path)
    assert result.explanation == "Emoji \ufffd"
    assert load_flags(tmp_path)[result.flag.latent].raw == result.flag.raw
    save(explain(record, ValueError("bad \ud83d"))[0], tmp_path)
    assert load_flags(tmp_path)[result.flag.latent].error == "ValueError: bad \ufffd"


def test_a_module_with_a_slash_is_found_again(record, tmp_path):
    record.latent = Latent("org/model/layers.3", 7)
    result, _ = explain(record, GOOD)
    save(result, tmp_path)
    assert load_flags(tmp_path) == {"org/model/layers.3_latent7": result.flag}
    assert done(tmp_path, record.latent) and not done(tmp_path, "layers.3_latent7")
    loaded = asyncio.run(explanation_loader(record, str(tmp_path / "explanations")))
    assert loaded.explanation == "Dates."


@pytest.mark.parametrize(
    ("answers", "finished"),
    [([GOOD], True), (["?", "?"], True), ([OSError("down")], False), (["?", OSError()], False)],
)
def test_only_what_the_judge_answered_is_done(record, tmp_path, answers, finished):
    assert not done(tmp_path, record.latent)
    result, _ = explain(record, *answers)
    save(result, tmp_path)
    assert done(tmp_path, record.latent) is finished
    assert done(tmp_path, str(record.latent)) is finished


def test_a_latent_without_its_explanation_is_not_done(record, tmp_path):
    save(explain(record, GOOD)[0], tmp_path)
    (tmp_path / "explanations" / "layers.3_latent7.txt").unlink()
    assert not done(tmp_path, record.latent)


def test_a_failure_leaves_an_earlier_explanation(record, tmp_path):
    save(explain(record, GOOD)[0], tmp_path)
    save(explain(record, OSError("down"))[0], tmp_path)
    loaded = asyncio.run(explanation_loader(record, str(tmp_path / "explanations")))
    assert loaded.explanation == "Dates."
    assert not done(tmp_path, record.latent)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"status": "ok"}'])
def test_a_damaged_flag_is_named(record, tmp_path, text):
    save(explain(record, GOOD)[0], tmp_path)
    (tmp_path / "flags" / "layers.3_latent7.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"layers\.3_latent7\.json is not a flag"):
        load_flags(tmp_path)
    with pytest.raises(ValueError, match="delete it"):
        done(tmp_path, record.latent)


def test_an_unknown_status_is_refused(record, tmp_path):
    save(explain(record, GOOD)[0], tmp_path)
    path = tmp_path / "flags" / "layers.3_latent7.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"ok"', '"fine"'), encoding="utf-8")
    with pytest.raises(ValueError, match="unknown status 'fine'"):
        load_flags(tmp_path)


def test_flags_of_a_folder_without_any(tmp_path):
    assert load_flags(tmp_path) == {}
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_flags(tmp_path / "nowhere")


@pytest.fixture
def cache(tmp_path, tokenizer):
    """delphi's cache of 40 texts of 16 tokens; latent i of three is active in i + 10 of them."""
    folder = tmp_path / "latents" / "layers.3"
    folder.mkdir(parents=True)
    ids = tokenizer(" ".join(SENTENCES * 4))["input_ids"]
    tokens = np.array(ids[: 40 * 16], dtype=np.int64).reshape(40, 16)
    rng = random.Random(0)
    where = [(row, rng.randrange(16), i) for i in range(3) for row in rng.sample(range(40), i + 10)]
    save_file(
        {
            "locations": np.array(where, dtype=np.int64),
            "activations": np.array([1 + rng.random() for _ in where], dtype=np.float16),
            "tokens": tokens,
        },
        folder / "0_2.safetensors",
    )
    (folder / "config.json").write_text('{"ctx_len": 16}', encoding="utf-8")
    return tmp_path / "latents"


def dataset(cache, tokenizer):
    return LatentDataset(
        cache,
        SamplerConfig(n_examples_train=10, train_type="top", n_examples_test=0),
        ConstructorConfig(example_ctx_len=16, min_examples=10, n_non_activating=10),
        tokenizer=tokenizer,
    )


class JudgeByLatent(Client):
    """Plays a remote model that is down whenever it is asked about one latent."""

    def __init__(self, down_for: str):
        super().__init__("by latent")
        self.down_for = down_for
        self.asked = []

    async def generate(self, prompt: Any, **kwargs):
        question = prompt[-1]["content"]
        self.asked.append(question)
        if question == self.down_for:
            raise ConnectionError("the server is down")
        return Response(GOOD)


def test_delphis_pipeline_over_a_latent_dataset(cache, tokenizer, tmp_path):
    records = {str(record.latent): record for record in dataset(cache, tokenizer)}
    assert len(records) == 3
    build = FlaggingExplainer(ScriptedClient())._build_prompt
    questions = {name: build(record.train)[-1]["content"] for name, record in records.items()}
    assert all(text.count("<<") == 10 for text in questions.values())

    client = JudgeByLatent(down_for=questions["layers.3_latent1"])
    explainer = process_wrapper(
        FlaggingExplainer(client), postprocess=partial(save, results_dir=tmp_path)
    )
    results = asyncio.run(Pipeline(dataset(cache, tokenizer), Pipe(explainer)).run(2))
    assert sorted(client.asked) == sorted(questions.values())
    assert {one.flag.latent: one.flag.status for [one] in results} == {
        "layers.3_latent0": "ok",
        "layers.3_latent1": "failed",
        "layers.3_latent2": "ok",
    }
    assert load_flags(tmp_path) == {one.flag.latent: one.flag for [one] in results}
    assert [name for name in sorted(questions) if not done(tmp_path, name)] == ["layers.3_latent1"]
    assert sorted(path.name for path in (tmp_path / "explanations").iterdir()) == [
        "layers.3_latent0.txt",
        "layers.3_latent2.txt",
    ]
    assert all(isinstance(one, FlaggedResult) for [one] in results)


def test_the_last_line_of_an_answer_that_was_cut_is_not_read(record):
    cut = "[EXPLANATION]: Lock picking.\n[HARMFUL]: no"  # perhaps it was to be "not harmless"
    answer = RecordedResponse(cut, record=RequestRecord("k", "m", cut, "max_tokens"))
    client = ScriptedClient(answer, BAD)
    flag = asyncio.run(FlaggingExplainer(client)(record)).flag
    assert (flag.status, flag.harmful, flag.attempts) == ("ok", True, 2)
    assert flag.raw[0] == cut
    assert "[HARMFUL]" in client.conversations[1][-1]["content"]
