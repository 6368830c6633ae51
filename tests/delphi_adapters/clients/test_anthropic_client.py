"""AnthropicClient, through the real SDK, against a server on the loopback."""

import asyncio
import json
import logging
import threading
from functools import partial
from typing import Any

import pytest

from delphi_adapters.clients import (
    AnthropicClient,
    BudgetExceeded,
    Ledger,
    MissingAPIKey,
    RecordedResponse,
    RequestFailed,
    ResultStore,
    RetryPolicy,
    UnknownPrice,
    UnsupportedArgument,
)
from delphi_adapters.clients.retries import retry_after
from tests.support.messages_server import CUT, HANG, KEY, Reply, error, message

# isort: split
from delphi.clients.client import Client, Response
from delphi.scorers import DetectionScorer
from delphi.scorers.classifier.sample import ClassifierOutput, Sample

PRICES = {"claude-test": {"input": 1.0, "output": 10.0, "cache_write": 1.25, "cache_read": 0.1}}


@pytest.fixture
def make(server, sleep):
    """A client of the server that notes its delays instead of waiting."""

    def make(attempts: int = 4, **kwargs) -> AnthropicClient:
        retries = RetryPolicy(attempts, first_delay=2.0, jitter=lambda: 0.0, sleep=sleep)
        kwargs = {"base_url": server.url, "retries": retries, "prices": PRICES, **kwargs}
        if "ledger" in kwargs:
            del kwargs["prices"]
        return AnthropicClient("claude-test", **kwargs)

    return make


def ask(client: AnthropicClient, *prompts, **kwargs) -> Any:
    """Answers of prompts asked at once, in a loop of their own; one prompt, one answer."""

    async def main():
        asked = [client.generate(prompt, **kwargs) for prompt in prompts]
        answers = await asyncio.gather(*asked)
        await client.aclose()
        return answers if len(prompts) > 1 else answers[0]

    return asyncio.run(main())


def restarted(client: AnthropicClient, make, **kwargs) -> AnthropicClient:
    client.store.close()
    return make(store=client.store.path, **kwargs)


def test_a_text_is_answered_with_the_texts_of_the_message(server, make):
    client = make()
    response = ask(client, "Hi")
    assert isinstance(client, Client) and issubclass(RecordedResponse, Response)
    assert isinstance(response, RecordedResponse)
    assert response.text == "To Hi"  # without the thinking
    assert server.bodies == [
        {
            "model": "claude-test",
            "max_tokens": 4096,
            "messages": [{"role": "user", "content": "Hi"}],
        }
    ]
    assert response.record.stop_reason == "end_turn"
    assert response.record.attempts == 1


def test_system_messages_go_to_system_and_the_turns_are_kept(server, make):
    turns = [
        {"role": "user", "content": " A "},
        {"role": "user", "content": "B\n"},
        {"role": "assistant", "content": "[0, 1]"},
        {"role": "user", "content": "모델"},
    ]
    system = [{"role": "system", "content": text} for text in ("First.", "Second.")]
    prompt = [system[0], *turns[:2], system[1], *turns[2:]]
    ask(make(), prompt, max_tokens=5, stop=["x"])
    body = server.bodies[0]
    assert body["messages"] == turns
    assert body["system"] == [
        {"type": "text", "text": "First."},
        {"type": "text", "text": "Second.", "cache_control": {"type": "ephemeral"}},
    ]
    assert (body["max_tokens"], body["stop_sequences"]) == (5, ["x"])
    ask(make(cache_system=False), prompt)
    assert "cache_control" not in json.dumps(server.bodies[1])


def test_sampling_is_dropped_unless_asked_for(server, make):
    ask(make(), "Hi", temperature=0.0, top_p=0.5)
    ask(make(send_sampling=True, extra_body={"metadata": {"user_id": "me"}}), "Hi", temperature=0.0)
    assert "temperature" not in server.bodies[0] and "top_p" not in server.bodies[0]
    assert server.bodies[1]["temperature"] == 0.0
    assert server.bodies[1]["metadata"] == {"user_id": "me"}


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ({"logprobs": True, "top_logprobs": 5}, "no log probabilities"),
        ({"prompt_logprobs": 15}, "no log probabilities"),
        ({"seed": 1}, r"does not know \['seed'\]"),
    ],
)
def test_arguments_that_cannot_be_honoured_are_refused(server, make, kwargs, words):
    with pytest.raises(UnsupportedArgument, match=words):
        ask(make(), "Hi", **kwargs)
    ask(make(), "Hi", logprobs=False)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "prompt, words",
    [
        ([], "no user message"),
        ([{"role": "system", "content": "S"}], "no user message"),
        ([{"role": "tool", "content": "S"}], "role 'tool'"),
        (["Hi"], "no `content`"),
        ("a \ud800 b", "lone surrogate"),
    ],
)
def test_prompts_that_are_no_conversation_are_refused(server, make, prompt, words):
    with pytest.raises(ValueError, match=words):
        ask(make(), prompt)
    assert not server.bodies


def test_settings_that_every_request_would_trip_over_are_refused_at_once(make):
    with pytest.raises(ValueError, match=r"extra_body may not set \['messages'\]"):
        make(extra_body={"messages": []})
    with pytest.raises(ValueError, match="max_tokens must be a positive integer"):
        make(max_tokens=-1)
    with pytest.raises(ValueError, match="concurrency"):
        make(concurrency=0)
    with pytest.raises(ValueError, match="give them to Ledger"):
        make(ledger=Ledger(), max_cost=1.0)


@pytest.mark.parametrize(
    "trouble",
    [
        error(408),
        error(409),
        error(429),
        error(500),
        error(503),
        error(529, "overloaded_error"),
        error(400, x_should_retry="true"),
        Reply(b"<html>busy</html>", 502, {"content-type": "text/html"}),
        CUT,
        Reply(b'{"id": "msg_1", "con'),
        Reply(b"\xff\xfe"),
        Reply(b"hello", headers={"content-type": "text/plain"}),
        Reply({"type": "error"}),
        Reply({**message(), "content": None}),
        Reply({**message(), "usage": {"output_tokens": 3}}),
    ],
    ids=lambda trouble: str(trouble)[:60],
)
def test_troubles_of_the_server_are_tried_again_with_growing_delays(server, make, sleeps, trouble):
    server.next(trouble, trouble, trouble)
    client = make()
    response = ask(client, "Hi")
    assert response.text == "To Hi"
    assert response.record.attempts == 4 == len(server.bodies)
    assert sleeps == [1.0, 2.0, 4.0]  # half of 2, 4, 8: the jitter is 0
    assert client.ledger.retries == 3


def test_the_jitter_spreads_delays_over_the_upper_half_up_to_the_longest():
    policy = partial(RetryPolicy, first_delay=2.0, longest_delay=10.0)
    assert [policy(jitter=lambda: 1.0).delay(n) for n in (1, 2, 3, 4, 2000)] == [2, 4, 8, 10, 10]
    assert [policy(jitter=lambda: 0.5).delay(n) for n in (1, 4)] == [1.5, 7.5]


def test_retry_after_is_kept_to_in_seconds_and_as_a_date(server, make, sleeps):
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    server.next(
        error(429, retry_after="7"),
        error(429, retry_after="Wed, 21 Oct 2015 07:28:33 GMT", date=date),
        error(529, retry_after="soon"),
    )
    assert ask(make(), "Hi").text == "To Hi"
    assert sleeps == [7.0, 33.0, 4.0]


def test_retry_after_is_read_with_care():
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    assert retry_after({"retry-after": date}, now=lambda: 1445412480.0 - 5) == 5.0
    assert retry_after({"retry-after": date}, now=lambda: 1445412480.0 + 5) == 0.0
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert [retry_after({"retry-after": v}) for v in ("nan", "-1", "", "inf")] == [None] * 4
    assert RetryPolicy(jitter=lambda: 0.0).delay(1, retry_after=1e9) == 3600.0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413])
def test_refused_requests_fail_at_once_and_say_why(server, make, sleeps, status):
    server.next(error(status, "some_error", f"your key {KEY} or sk-ant-other is bad"))
    with pytest.raises(RequestFailed) as failure:
        ask(make(), "Hi")
    assert (failure.value.status, failure.value.attempts) == (status, 1)
    assert failure.value.reason == f"HTTP {status}: your key [redacted] or [redacted] is bad"
    assert "claude-test gave no answer, asked once: HTTP" in str(failure.value)
    assert not sleeps


def test_a_failure_is_recorded_and_asked_again_in_the_next_run(server, make, tmp_path):
    server.next(*[error(529)] * 3)
    client = make(attempts=3, store=tmp_path / "store")
    with pytest.raises(RequestFailed) as failure:
        ask(client, "Hi")
    assert failure.value.attempts == 3
    assert failure.value.__context__ is None  # a chained error would hold the request's headers
    line = json.loads((tmp_path / "store" / "failures.jsonl").read_text(encoding="utf-8"))
    assert (line["status"], line["attempts"], line["error"]) == (529, 3, "HTTP 529: no")
    assert client.ledger.outcomes == {"failed": 1}
    assert ask(restarted(client, make), "Hi").text == "To Hi"


def test_a_server_that_does_not_respond_is_given_up_and_may_have_cost_something(server, make):
    server.next(HANG, HANG)
    client = make(attempts=2, timeout=0.05)
    with pytest.raises(RequestFailed, match="no response in time") as failure:
        ask(client, "Hi")
    assert failure.value.status is None
    worst = client.ledger.worst_case(client.request("Hi"))
    assert worst > 0
    assert client.ledger.uncertain == pytest.approx(2 * worst)
    assert failure.value.record.uncertain_cost == pytest.approx(2 * worst)
    assert client.ledger.reserved == 0


def test_a_server_that_is_not_there_costs_nothing(make):
    client = make(attempts=2, base_url="http://127.0.0.1:9")
    with pytest.raises(RequestFailed, match="connection failed"):
        ask(client, "Hi")
    assert client.ledger.cost == 0


@pytest.mark.parametrize("reason", ["refusal", "max_tokens", "model_context_window_exceeded"])
def test_refusals_and_cut_answers_are_answers_that_can_be_told(server, make, tmp_path, reason):
    server.answer = lambda body: message("I can", reason)
    client = make(store=tmp_path / "store")
    response = ask(client, "Hi")
    assert (response.text, response.record.stop_reason) == ("I can", reason)
    assert client.ledger.outcomes == {reason: 1}
    again = restarted(client, make)
    assert ask(again, "Hi").record.stop_reason == reason
    assert len(server.bodies) == 1
    assert again.ledger.outcomes == {"stored": 1}


def test_an_answer_without_any_text_is_an_empty_text(server, make):
    server.answer = lambda body: {**message("", "refusal"), "content": []}
    assert ask(make(), "Hi").text == ""


def test_equal_requests_at_once_are_sent_once(server, make):
    server.hold = partial(threading.Barrier(2).wait, 60)  # both different ones are in flight
    client = make()
    answers = ask(client, "A", "B", "A", "A", [{"role": "user", "content": "B"}])
    assert [answer.text for answer in answers] == ["To A", "To B", "To A", "To A", "To B"]
    assert server.sent() == {"A": 1, "B": 1}


def test_clients_with_one_folder_share_its_answers(server, make, tmp_path):
    first, second = make(store=tmp_path / "store"), make(store=tmp_path / "store")
    assert first.store is second.store

    async def main():
        return await asyncio.gather(first.generate("A"), second.generate("A"))

    asyncio.run(main())
    assert server.sent() == {"A": 1}


def test_what_determines_the_answer_is_asked_anew_when_it_changes(server, make):
    client = make()
    keys = {
        client.request("A").key,
        client.request("B").key,
        client.request([{"role": "system", "content": "A"}, {"role": "user", "content": "A"}]).key,
        client.request("A", max_tokens=7).key,
        client.request("A", stop="x").key,
        make(extra_body={"thinking": {"type": "disabled"}}).request("A").key,
        AnthropicClient("claude-other", base_url=server.url).request("A").key,
    }
    assert len(keys) == 7
    assert make(cache_system=False).request("A", temperature=1).key in keys


def test_a_caller_that_gives_up_leaves_the_request_to_the_next(server, make):
    server.next(HANG)
    client = make()

    async def main():
        first = asyncio.create_task(client.generate("A"))
        while not server.bodies:
            await asyncio.sleep(0.001)
        second = asyncio.create_task(client.generate("A"))
        await asyncio.sleep(0)
        first.cancel()
        return await second

    assert asyncio.run(main()).text == "To A"
    assert client.ledger.uncertain > 0  # the server may go on with the first
    assert client.ledger.reserved == 0


@pytest.mark.parametrize("limit", [2, 6])
def test_no_more_requests_are_in_flight_than_the_limit(server, make, limit):
    together = threading.Barrier(limit)  # so many are there at once, or the test breaks

    def hold() -> None:
        together.wait(60)
        threading.Event().wait(0.2)  # for one too many, which must not come

    server.hold = hold
    ask(make(concurrency=limit), *"ABCDEF")
    assert server.most_active == limit
    assert len(server.bodies) == 6


def test_one_client_serves_several_loops(server, make):
    client = make()
    assert [ask(client, prompt).text for prompt in "AB"] == ["To A", "To B"]


def test_a_restarted_run_pays_nothing_twice(server, make, tmp_path):
    client = make(store=tmp_path / "store")
    ask(client, "A", "B")
    again = restarted(client, make)
    texts = [answer.text for answer in ask(again, "A", "B", "C")]
    assert texts == ["To A", "To B", "To C"]
    assert server.sent() == {"A": 1, "B": 1, "C": 1}
    assert again.ledger.outcomes == {"stored": 2, "end_turn": 1}


def test_the_key_is_sent_but_found_nowhere_else(server, make, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    server.next(error(500, text=f"{KEY} is overloaded"), None, error(401, text=f"bad {KEY}"))
    client = make(store=tmp_path / "store")
    ask(client, "A")
    with pytest.raises(RequestFailed) as failure:
        ask(client, "B")
    assert KEY in json.dumps(server.headers)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"answers.jsonl", "failures.jsonl"} <= {path.name for path in files}
    seen = [path.read_text(encoding="utf-8") for path in files]
    seen += [repr(client), repr(failure.value), repr(vars(failure.value)), caplog.text]
    seen += [json.dumps(client.ledger.summary()), *capfd.readouterr()]
    assert not any(KEY in text for text in seen)


def test_without_a_key_nothing_is_sent(server, make, monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with pytest.raises(MissingAPIKey, match="set the environment variable ANTHROPIC_API_KEY"):
        make()
    monkeypatch.setenv("ANTHROPIC_PROFILE", "mine")
    with pytest.raises(MissingAPIKey, match=r"ANTHROPIC_API_KEY\. .*profile 'mine'"):
        make()
    assert not server.calls


def test_the_ledger_counts_tokens_and_dollars(server, make):
    server.answer = lambda body: message(
        cache_creation_input_tokens=1000, cache_read_input_tokens=2000
    )
    client = make()
    ask(client, "A", "B")
    usage = client.ledger.usage["claude-test"]
    assert vars(usage) == dict(input=200, output=20, cache_write=2000, cache_read=4000)
    assert client.ledger.cost == pytest.approx((200 + 20 * 10 + 2000 * 1.25 + 4000 * 0.1) / 1e6)


def test_an_estimate_sends_nothing_and_leaves_out_what_is_stored(server, make):
    client = make(max_tokens=50)
    ask(client, "A" * 40)
    estimate = client.estimate(["A" * 40, "B" * 41, "B" * 41, "C"])
    assert (estimate.requests, estimate.stored) == (2, 1)
    assert (estimate.input_tokens, estimate.output_tokens) == (11 + 1, 100)
    assert estimate.cost == pytest.approx((12 + 100 * 10) / 1e6)
    assert sum(server.calls.values()) == 1
    counted = asyncio.run(client.estimate_by_counting(["A" * 40, "B" * 41, "C"], max_tokens=9))
    assert (counted.requests, counted.input_tokens, counted.output_tokens) == (3, 21, 27)
    assert server.calls["POST /v1/messages/count_tokens"] == 3
    assert client.ledger.outcomes == {"end_turn": 1}


def test_a_budget_needs_a_price(server):
    with pytest.raises(UnknownPrice, match="'claude-unheard-of' is not known"):
        AnthropicClient("claude-unheard-of", max_cost=1.0, base_url=server.url)


def test_the_budget_stops_before_a_request_that_could_exceed_it(server, make, tmp_path):
    worst = Ledger(PRICES).worst_case(make().request("A", max_tokens=100))
    each = (100 + 10 * 10) / 1e6
    assert worst > 3 * each
    budget = worst + 2.5 * each  # room for a third one's worst case, not for a fourth's
    client = make(max_cost=budget, store=tmp_path / "store")
    with pytest.raises(BudgetExceeded, match="run again with a higher max_cost"):
        ask(client, *"ABCDEF", max_tokens=100)
    assert len(server.bodies) == 3
    assert server.most_active == 1  # a second one would not have fitted beside the first
    assert client.ledger.cost == pytest.approx(3 * each)
    assert client.ledger.stopped and client.ledger.reserved == 0
    assert len((tmp_path / "store" / "answers.jsonl").read_text(encoding="utf-8").splitlines()) == 3

    same = restarted(client, make, max_cost=budget)
    assert same.ledger.earlier == pytest.approx(3 * each)
    with pytest.raises(BudgetExceeded):
        ask(same, *"ABCDEF", max_tokens=100)
    assert len(server.bodies) == 3  # what earlier runs spent counts
    more = restarted(same, make, max_cost=10 * budget)
    assert len(ask(more, *"ABCDEF", max_tokens=100)) == 6
    assert server.sent() == dict.fromkeys("ABCDEF", 1)


def test_stored_answers_are_given_out_after_the_budget_has_stopped(make):
    client = make(max_cost=1e-3)
    ask(client, "A", max_tokens=10)
    with pytest.raises(BudgetExceeded):
        ask(client, "B", max_tokens=10_000)
    assert ask(client, "A", max_tokens=10).text == "To A"
    with pytest.raises(BudgetExceeded):
        ask(client, "C", max_tokens=10)


def test_attempts_that_may_have_been_billed_count_against_the_budget(server, make, tmp_path):
    server.next(CUT, CUT, CUT)
    worst = Ledger(PRICES).worst_case(make().request("A"))
    client = make(max_cost=2.5 * worst, store=tmp_path / "store")
    with pytest.raises(BudgetExceeded):
        ask(client, "A")
    assert len(server.bodies) == 2
    assert client.ledger.uncertain == pytest.approx(2 * worst)
    again = restarted(client, make, max_cost=2.5 * worst)
    assert again.ledger.uncertain == pytest.approx(2 * worst)
    with pytest.raises(BudgetExceeded):
        ask(again, "A")
    assert len(server.bodies) == 2


def detect(client: AnthropicClient) -> list[ClassifierOutput]:
    outputs = [ClassifierOutput([f"t{i}"], [0.0], 1, True) for i in range(2)]
    samples = [Sample("text", output) for output in outputs]
    scorer = DetectionScorer(client, n_examples_shown=2, verbose=False, temperature=0.0)
    return asyncio.run(scorer._generate("an explanation", samples))


def test_delphi_s_scorer_reads_answers_and_leaves_failures_unanswered(server, make):
    server.answer = lambda body: message("[1, 0]")
    assert [output.prediction for output in detect(make())] == [True, False]
    assert server.bodies[0]["system"][0]["text"].startswith("You are an intelligent")
    assert [m["role"] for m in server.bodies[0]["messages"]][:2] == ["user", "assistant"]
    server.next(error(400))
    assert [output.prediction for output in detect(make())] == [None, None]


def test_delphi_s_scorer_does_not_swallow_the_end_of_the_budget(make):
    with pytest.raises(BudgetExceeded):
        detect(make(max_cost=1e-9))


def test_a_store_can_be_given_as_it_is(server, make):
    store = ResultStore()
    ask(make(store=store), "A")
    ask(make(store=store), "A")
    assert server.sent() == {"A": 1}
