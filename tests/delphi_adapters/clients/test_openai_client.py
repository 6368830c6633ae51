"""OpenAIClient, through the real SDK, against a server on the loopback."""

import asyncio
import random
from collections import Counter
from contextlib import suppress
from functools import partial

import pytest

from delphi_adapters.clients import (
    AnthropicClient,
    BudgetExceeded,
    MissingAPIKey,
    OpenAIClient,
    RequestFailed,
    RetryPolicy,
    UnknownPrice,
)
from delphi_adapters.clients.judge import JudgeConfig, make_client
from tests.support.chat_server import KEY, ChatServer, completion, refused
from tests.support.messages_server import CUT, HANG, MessagesServer, Reply, text_of

PRICES = {"test": {"input": 1.0, "output": 10.0}}
ALL_CACHED = {
    "prompt_tokens": 9,
    "completion_tokens": 1,
    "prompt_tokens_details": {"cached_tokens": 10},
}
SCHEMA = {"type": "object", "properties": {"score": {"type": "integer"}}, "required": ["score"]}


@pytest.fixture
def chat(monkeypatch):
    """A server, and a key for it in the environment."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with ChatServer() as server:
        yield server


@pytest.fixture
def make(chat, sleep):
    """A client of the server that notes its delays instead of waiting."""

    def make(attempts: int = 4, **kwargs) -> OpenAIClient:
        retries = RetryPolicy(attempts, first_delay=2.0, jitter=lambda: 0.0, sleep=sleep)
        kwargs = {"base_url": f"{chat.url}/v1", "retries": retries, "prices": PRICES, **kwargs}
        return OpenAIClient("test", **kwargs)

    return make


def ask(client, *prompts, **kwargs):
    """Answers of prompts asked at once, in a loop of their own; one prompt, one answer."""

    async def main():
        answers = await asyncio.gather(*[client.generate(prompt, **kwargs) for prompt in prompts])
        await client.aclose()
        return answers if len(prompts) > 1 else answers[0]

    return asyncio.run(main())


def test_a_text_is_answered(chat, make):
    client = make()
    response = ask(client, "Hi", stop="\n")
    assert response.text == "To Hi" and response.record.stop_reason == "end_turn"
    assert chat.bodies == [
        {
            "model": "test",
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 4096,
            "stop": ["\n"],
            "stream": False,
        }
    ]
    headers = {name.lower(): value for name, value in chat.headers[0].items()}
    assert headers["authorization"] == f"Bearer {KEY}"
    assert client.ledger.spent == pytest.approx((100 * 1 + 10 * 10) / 1e6)


def test_openai_itself_is_asked_by_the_newer_name_of_the_limit(chat, make, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", f"{chat.url}/v1")
    ask(make(base_url=None, max_tokens=7), "Hi")
    assert chat.bodies[0]["max_completion_tokens"] == 7 and "max_tokens" not in chat.bodies[0]


def test_prompts_are_those_of_the_other_client_to_the_byte(chat, make, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-test")
    prompt = [
        {"role": "system", "content": "Be brief. — «»"},
        {"role": "user", "content": "One\n\ttwo"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And?"},
    ]
    ask(make(), prompt)
    with MessagesServer() as other:
        ask(AnthropicClient("claude-test", base_url=other.url), prompt)
    theirs = other.bodies[0]
    system = [{"role": "system", "content": block["text"]} for block in theirs["system"]]
    assert chat.bodies[0]["messages"] == [*system, *theirs["messages"]] == prompt


@pytest.mark.parametrize(
    "trouble",
    [
        CUT,
        refused(429),
        refused(500),
        refused(529),
        Reply(b"<html>no json", headers={"content-type": "text/html"}),
        Reply(b'{"id": "cut off'),
        Reply({"object": "chat.completion"}),
        Reply(completion(choices=[])),
        Reply(completion(choices=None)),
        Reply(completion(choices=[{"index": 0, "message": None, "finish_reason": "stop"}])),
        Reply(completion(reason=None)),
        Reply(completion(usage={"prompt_tokens": "many", "completion_tokens": 1})),
        Reply(completion(usage={"prompt_tokens": -9, "completion_tokens": 1})),
        Reply(completion(usage={"prompt_tokens": 9, "completion_tokens": True})),
        Reply(completion(usage=ALL_CACHED)),
    ],
    ids=repr,
)
def test_troubles_of_the_server_are_tried_again(chat, make, sleeps, trouble):
    chat.next(trouble, trouble)
    assert ask(make(), "Hi").text == "To Hi"
    assert sleeps == [1.0, 2.0] and len(chat.bodies) == 3


def test_retry_after_is_kept_to(chat, make, sleeps):
    chat.next(refused(429, retry_after="7"))
    ask(make(), "Hi")
    assert sleeps == [7.0]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413])
def test_refused_requests_fail_at_once_and_say_why(chat, make, sleeps, status):
    chat.next(refused(status, f"your key {KEY} is bad"))
    with pytest.raises(RequestFailed) as failure:
        ask(make(), "Hi")
    assert failure.value.reason == f"HTTP {status}: your key [redacted] is bad"
    assert (failure.value.status, failure.value.attempts) == (status, 1) and not sleeps


def test_a_server_that_does_not_respond_may_have_cost_something(chat, make):
    chat.next(HANG)
    client = make(attempts=1, timeout=0.2, max_cost=1.0)
    with pytest.raises(RequestFailed, match="no response in time"):
        ask(client, "Hi")
    assert client.ledger.uncertain > 0


@pytest.mark.parametrize(
    ("answer", "text", "reason"),
    [
        (completion("Some", "length"), "Some", "max_tokens"),
        (completion("", "content_filter"), "", "refusal"),
        (completion(None, refusal="I cannot."), "I cannot.", "refusal"),
        (completion(None), "", "end_turn"),
        (completion("x", "tool_calls"), "x", "tool_calls"),
    ],
)
def test_refusals_and_cut_answers_can_be_told(chat, make, answer, text, reason):
    chat.next(Reply(answer))
    record = ask(make(), "Hi").record
    assert (record.text, record.stop_reason) == (text, reason)


def test_cached_tokens_are_read_at_their_price(chat, make):
    details = {"prompt_tokens": 100, "completion_tokens": 0, "total_tokens": 100}
    details["prompt_tokens_details"] = {"cached_tokens": 60}
    chat.next(Reply(completion(usage=details)))
    usage = ask(make(), "Hi").record.usage
    assert (usage.input, usage.cache_read, usage.output) == (40, 60, 0)


def test_a_server_that_counts_no_tokens_serves_where_nothing_is_counted(chat, make):
    chat.answer = lambda body: completion(usage=None)
    assert ask(make(prices=None), "Hi").text == "An answer."
    with pytest.raises(RequestFailed, match="no number of prompt_tokens"):
        ask(make(attempts=1, max_cost=1.0), "Ho")


def test_answers_are_held_to_a_schema_where_the_server_can(chat, make):
    chat.answer = lambda body: completion('{"score": 3}')
    client = make(structured=True)
    assert ask(client, "Hi", schema=SCHEMA).structured
    form = chat.bodies[0]["response_format"]
    assert form["type"] == "json_schema" and form["json_schema"]["schema"] == SCHEMA
    chat.next(refused(400, "response_format is not supported"))
    assert not ask(client, "Ho", schema=SCHEMA).structured
    assert "response_format" not in chat.bodies[-1]


def test_a_key_is_needed_but_on_this_machine(chat, make, monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert ask(make(), "Hi").text == "To Hi"
    for elsewhere in (None, "https://openrouter.ai/api/v1"):
        with pytest.raises(MissingAPIKey, match="OPENAI_API_KEY"):
            make(base_url=elsewhere)
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        make_client(JudgeConfig("openai:gpt"), tmp_path, dry_run=True)


def test_the_key_is_in_no_file(chat, make, tmp_path):
    chat.next(refused(401, f"bad key {KEY}"))
    with suppress(RequestFailed):
        ask(make(store=tmp_path / "store"), "Hi", "Ho")
    files = [file.read_bytes() for file in (tmp_path / "store").iterdir() if file.is_file()]
    assert files and not any(KEY.encode() in content for content in files)


def test_a_judge_is_named_by_openai_and_its_name(chat, tmp_path):
    here = JudgeConfig("openai:org/model", base_url=f"{chat.url}/v1")
    client = make_client(here, tmp_path)
    assert isinstance(client, OpenAIClient) and client.model == "org/model" and not here.local
    assert JudgeConfig("model", provider="openai").asked_through == "openai"
    client.store.close()


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        (JudgeConfig("openai:m"), "Give --max_cost"),
        (JudgeConfig("openai:m", base_url="https://openrouter.ai/api/v1"), "Give --max_cost"),
        (JudgeConfig("openai:m", max_cost=1.0), "price of 'm' is not known"),
        (JudgeConfig("openai:m", max_cost=1.0, batch=True), "--batch is for Claude models"),
        (JudgeConfig("folder", base_url="http://localhost:8000/v1"), "--base_url is for a judge"),
        (JudgeConfig("none", base_url="http://localhost:8000/v1"), "--base_url goes with a judge"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_asked(
    chat, tmp_path, judge, words
):
    with pytest.raises(ValueError, match=words):
        make_client(judge, tmp_path)
    assert not chat.bodies


def test_models_of_one_name_behind_two_servers_are_two(make):
    here, there = (make(base_url=f"http://localhost:{port}/v1") for port in (1, 2))
    assert here.request("Hi").key == make(base_url="http://localhost:1/v1").request("Hi").key
    assert here.request("Hi").key != there.request("Hi").key


def test_a_budget_needs_a_price(make):
    with pytest.raises(UnknownPrice):
        make(prices=None, max_cost=1.0)


TROUBLES = [
    CUT,
    refused(400),
    refused(429, retry_after="1"),
    refused(500),
    Reply(b"{"),
    Reply(completion(choices=[])),
    Reply(completion("", "content_filter")),
]


@pytest.mark.parametrize(
    "transcripts", [range(15), pytest.param(range(15, 1000), marks=pytest.mark.slow)], ids=len
)
def test_whatever_happens_the_budget_holds_and_nothing_is_bought_twice(chat, make, transcripts):
    """Each transcript: prompts, a budget, troubles, and runs that are stopped and taken up."""
    stopped = exceeded = 0
    for seed in transcripts:
        rng = random.Random(seed)
        prompts = [f"{seed} {'x' * rng.randint(0, 40)} {n}" for n in range(rng.randint(1, 6))]
        budget = rng.choice([0.0004, 0.002, 0.01])
        bought: Counter[str] = Counter()
        chat.answer, chat.script = partial(sell, bought), {}
        store = None
        for _ in range(rng.randint(1, 3)):
            chat.next(*(rng.choice([None, None, *TROUBLES]) for _ in range(rng.randint(0, 8))))
            client = make(attempts=2, max_tokens=30, max_cost=budget, store=store)
            store = client.store
            ended = run(client, prompts, rng.choice([None, 0.0, 0.003, 0.006]))
            stopped, exceeded = stopped + (ended == "stopped"), exceeded + (ended == "exceeded")
            assert client.ledger.cost <= budget + 1e-12
        lost = Counter(record.key for record in store.failures if record.uncertain_cost)
        for prompt in prompts:
            key = client.request(prompt).key
            # What was cut off may have been answered: it is asked again, and counts as paid.
            assert bought[prompt] <= (store.get(key) is not None) + lost[key]
        paid = sum(100 + len(prompt) for prompt in bought.elements()) / 1e6
        assert paid <= budget + 1e-12
    assert stopped and exceeded


def sell(bought, body):
    """An answer that costs 100 millionths of a dollar, and one for each character asked."""
    bought[text_of(body)] += 1
    tokens = {"prompt_tokens": len(text_of(body)), "completion_tokens": 10, "total_tokens": 0}
    return completion(usage=tokens)


def run(client, prompts, seconds):
    """Ask, and cut everything off after so many seconds; how it ended."""

    async def main():
        asked = asyncio.gather(
            *[client.generate(prompt) for prompt in prompts], return_exceptions=True
        )
        try:
            found = await asyncio.wait_for(asked, seconds)
        except asyncio.TimeoutError:
            return "stopped"
        finally:
            await client.aclose()
        return "exceeded" if any(isinstance(one, BudgetExceeded) for one in found) else "whole"

    return asyncio.run(main())
