"""Answers that are held to a schema, and that nothing is paid for twice because of it."""

import asyncio
import json
import re

import pytest

from delphi_adapters.clients import AnthropicClient, BatchAnthropicClient, RetryPolicy
from delphi_adapters.clients.judge import JudgeConfig, make_client
from delphi_adapters.explaining.categories import CATEGORIES, CategoryJudge
from delphi_adapters.explaining.flagging import FlagQuestion
from delphi_adapters.judging.ask import ask
from delphi_adapters.judging.rating import RatingQuestion, Scale, block, rate
from tests.support.messages_server import KEY, MessagesServer, error, message

RAIN = Scale("RAIN", "How much rain?", ("None.", "Little.", "Some.", "Much.", "All."))
QUESTION = RatingQuestion("Rate.", block("text", "It rains."), [RAIN])
REFUSAL = error(400, "invalid_request_error", "output_config: Extra inputs are not permitted")


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with MessagesServer() as server:
        yield server


@pytest.fixture
def run(server, tmp_path):
    """What a coroutine function makes of a client, whose answers are kept in a folder."""

    def run(work, kind=AnthropicClient, structured=True, store=tmp_path / "answers", **options):
        async def main():
            retries = RetryPolicy(attempts=1)
            client = kind(
                "claude-test",
                store=store,
                base_url=server.url,
                structured=structured,
                retries=retries,
                **options,
            )
            try:
                return await work(client)
            finally:
                await client.aclose()
                client.store.close()

        return asyncio.run(main())

    return run


def code(body: dict) -> str:
    found = re.search(r"code of this request is (\w+)", body["messages"][0]["content"])
    assert found
    return found[1]


def schema(body: dict) -> dict | None:
    return body.get("output_config", {}).get("format", {}).get("schema")


def as_object(body: dict) -> dict:
    return message(json.dumps({"code": code(body), "REASON": "It does.", "RAIN": 4}))


def as_text(body: dict) -> dict:
    return message(f"[REASON {code(body)}]: It does.\n[RAIN {code(body)}]: 4")


async def rated(client):
    return await rate(client, QUESTION)


def test_a_rating_is_an_object_with_the_code_of_its_request(server, run):
    server.answer = as_object
    rating = run(rated)
    assert (rating.status, rating.scores, rating.reason) == ("ok", {"RAIN": 4}, "It does.")
    [body] = server.bodies
    asked = schema(body)
    assert asked is not None
    assert asked["required"] == ["code", "REASON", "RAIN"] and not asked["additionalProperties"]
    assert body["messages"] == QUESTION.messages()[1:]  # not a byte of the prompt is another


@pytest.mark.parametrize(
    "said",
    [
        {"REASON": "It does.", "RAIN": 4},
        {"code": "00000000", "REASON": "It does.", "RAIN": 4},
        {"code": None, "RAIN": 4},
        {"code": "CODE", "RAIN": 9},
        {"code": "CODE", "RAIN": True},
        {"code": "CODE", "RAIN": 4.5},
        {"code": "CODE", "RAIN": [4]},
        {"code": "CODE"},
        [4],
        4,
        '{"code": "CODE", "RAIN": 4',
        "",
    ],
)
def test_an_object_without_the_code_or_a_score_is_reminded_of(server, run, said):
    def answer(body):
        if len(body["messages"]) > 1:
            return as_object(body)
        text = said if isinstance(said, str) else json.dumps(said)
        return message(text.replace("CODE", code(body)))

    server.answer = answer
    rating = run(rated)
    assert (rating.status, rating.attempts, rating.scores) == ("ok", 2, {"RAIN": 4})
    assert "could not read" in server.bodies[1]["messages"][-1]["content"]


def test_text_of_a_judge_that_was_held_to_a_schema_in_vain_is_read_as_text(server, run):
    server.answer = as_text
    rating = run(rated)
    assert (rating.status, rating.attempts, rating.scores) == ("ok", 1, {"RAIN": 4})
    assert schema(server.bodies[0]) is not None


def test_an_object_of_a_judge_that_was_not_held_to_one_is_no_answer(server, run):
    server.answer = as_object
    rating = run(rated, structured=False)
    assert rating.status == "unparsable"
    assert [schema(body) for body in server.bodies] == [None] * 3


def test_what_was_answered_before_schemas_is_not_asked_again(server, run):
    server.answer = as_text
    before = run(rated, structured=False)
    sent = len(server.bodies)
    assert run(rated) == before
    assert len(server.bodies) == sent


def test_a_structured_answer_is_kept_and_not_asked_again(server, run):
    server.answer = as_object
    first = run(rated)
    assert run(rated) == first
    assert len(server.bodies) == 1


def test_a_model_that_refuses_schemas_is_asked_without_and_that_is_said_once(server, run, capsys):
    server.answer = as_text

    async def two(client):
        other = RatingQuestion("Rate.", block("text", "It is dry."), [RAIN])
        return [await rate(client, QUESTION), await rate(client, other)]

    server.next(REFUSAL)
    assert [one.scores for one in run(two)] == [{"RAIN": 4}] * 2
    assert [schema(body) is None for body in server.bodies] == [False, True, True]
    said = capsys.readouterr().err.splitlines()
    [line] = [line for line in said if "schema" in line]
    assert line.startswith("claude-test cannot be held to a schema") and "Extra inputs" in line


def test_a_request_that_is_refused_either_way_fails_and_schemas_are_asked_for_on(server, run):
    server.answer = as_object
    server.next(error(400, "invalid_request_error", "the prompt is too long"))
    server.next(error(400, "invalid_request_error", "the prompt is too long"))

    async def two(client):
        return [await rate(client, QUESTION), await rate(client, QUESTION)]

    failed, rating = run(two)
    assert failed.status == "failed" and "too long" in failed.error
    assert rating.scores == {"RAIN": 4} and schema(server.bodies[-1]) is not None


def test_an_overloaded_server_says_nothing_of_schemas(server, run):
    server.next(error(529, "overloaded_error"))
    assert run(rated).status == "failed"
    assert len(server.bodies) == 1


def test_categories_and_flags_are_objects_too(server, run):
    def answer(body):
        if "CATEGORY" in str(schema(body)):
            return message(json.dumps({"CATEGORY": CATEGORIES[2]}))
        fields = {"EXPLANATION": "Doors.", "HARMFUL": "yes", "HARMFUL_REASON": "They open."}
        return message(json.dumps(fields))

    server.answer = answer

    async def both(client):
        flag = FlagQuestion("latent1", [{"role": "user", "content": "?"}])
        return await CategoryJudge(client)("latent1", "Doors.", None), await ask(client, flag)

    category, flag = run(both)
    assert category.category == CATEGORIES[2]
    assert (flag.status, flag.reading.explanation, flag.reading.harmful) == ("ok", "Doors.", True)
    assert flag.reading.reason == "They open."


def test_a_judge_that_thinks_aloud_is_not_held_to_a_schema():
    assert FlagQuestion("latent1", [], open_end=True).schema is None


def test_an_output_that_the_caller_asks_for_stays(server, run):
    server.answer = as_text
    own = {"output_config": {"effort": "low"}}
    run(rated, extra_body=own)
    assert server.bodies[0]["output_config"]["effort"] == "low"
    assert schema(server.bodies[0]) is not None
    own = {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}}
    run(rated, extra_body=own, store=None)
    assert schema(server.bodies[1]) == {"type": "object"}


def test_batches_are_held_to_schemas_and_refusals_in_them_are_asked_again(server, run):
    def outcome(request):
        if schema(request["params"]) is not None:
            return {"type": "errored", "error": REFUSAL.body}
        return {"type": "succeeded", "message": as_text(request["params"])}

    server.outcome, server.polls = outcome, 1
    fast = {"idle": 0.01, "poll_first": 0.01}
    assert run(rated, BatchAnthropicClient, **fast).scores == {"RAIN": 4}
    held, plain = [b["requests"][0]["params"] for b in server.batches.values()]
    assert schema(held) is not None and schema(plain) is None


def test_a_batch_from_before_schemas_is_waited_for_and_not_paid_twice(server, run, tmp_path):
    server.polls, server.answer = 1, as_text
    fast = {"idle": 0.01, "poll_first": 0.01}

    async def killed(client):
        asking = asyncio.create_task(rate(client, QUESTION))
        while not server.batches:
            await asyncio.sleep(0.01)
        asking.cancel()
        for task in client._loop().extras["batches"].tasks:
            task.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    run(killed, BatchAnthropicClient, structured=False, **fast)
    assert list((tmp_path / "answers" / "batches").glob("*.json"))
    assert run(rated, BatchAnthropicClient, **fast).scores == {"RAIN": 4}
    assert len(server.batches) == 1


def test_judges_of_the_commands_are_held_to_schemas_unless_told_otherwise(server, tmp_path):
    judge = JudgeConfig("claude-haiku-4-5", max_cost=1.0)
    client = make_client(judge, tmp_path)
    assert isinstance(client, AnthropicClient) and client.structured
    client.store.close()
    off = JudgeConfig("claude-haiku-4-5", max_cost=1.0, structured=False)
    client = make_client(off, tmp_path)
    assert isinstance(client, AnthropicClient) and not client.structured
    client.store.close()
