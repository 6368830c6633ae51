"""BatchAnthropicClient, through the real SDK, against a server on the loopback."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter

import pytest

from delphi_adapters.clients import (
    BatchAnthropicClient,
    BudgetExceeded,
    Ledger,
    RequestFailed,
    RetryPolicy,
)
from tests.support.messages_server import CUT, KEY, MessagesServer, Reply, error, message, text_of

PRICES = {"claude-test": {"input": 1.0, "output": 10.0}}
CREATE = "POST /v1/messages/batches"


def results_of(number: int) -> str:
    return f"GET /v1/messages/batches/msgbatch_{number}/results"


@pytest.fixture
def make(server, sleep, tmp_path):
    """A client of the server that notes its delays instead of waiting."""

    def make(attempts: int = 3, sleep=sleep, **kwargs) -> BatchAnthropicClient:
        retries = RetryPolicy(attempts, first_delay=2.0, jitter=lambda: 0.0, sleep=sleep)
        defaults = dict(store=tmp_path / "store", prices=PRICES, base_url=server.url)
        return BatchAnthropicClient("claude-test", retries=retries, **{**defaults, **kwargs})

    return make


def ask(client: BatchAnthropicClient, *prompts, **kwargs) -> list[str]:
    """Texts of prompts, or "failed: why"."""

    async def main():
        records = await client.answer_all(prompts, **kwargs)
        await client.aclose()
        return [f"failed: {r.error}" if r.failed else r.text for r in records]

    return asyncio.run(main())


def restarted(client: BatchAnthropicClient, make, **kwargs) -> BatchAnthropicClient:
    client.store.close()
    return make(**kwargs)


def under_way(client: BatchAnthropicClient) -> list[dict]:
    return [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(client.folder.glob("*.json"))
    ]


def sizes(server: MessagesServer) -> list[int]:
    return [len(batch["requests"]) for batch in server.batches.values()]


def test_prompts_asked_together_are_one_batch(server, make, sleeps):
    client = make(poll_first=10.0, poll_longest=20.0)
    server.polls = 4
    prompt = [{"role": "system", "content": "S"}, {"role": "user", "content": "B"}]
    assert ask(client, "A", prompt, "A", max_tokens=9) == ["To A", "To B", "To A"]
    assert sizes(server) == [2]
    assert not server.bodies
    params = server.batches["msgbatch_0"]["requests"][1]["params"]
    assert params["system"][0]["cache_control"] == {"type": "ephemeral"}
    assert params["max_tokens"] == 9 and params["model"] == "claude-test"
    assert sleeps == [5.0, 10.0, 15.0, 20.0]  # until the queue is idle, and between polls
    assert under_way(client) == []


def test_generate_is_delphi_s(server, make):
    server.outcome = lambda request: {"type": "errored", "error": invalid}
    invalid = {"type": "error", "error": {"type": "invalid_request_error", "message": "bad"}}
    client = make()
    with pytest.raises(RequestFailed, match="asked once: errored: invalid_request_error: bad"):
        asyncio.run(client.generate("A", temperature=0.0))
    del server.outcome
    server.outcome = lambda request: {"type": "succeeded", "message": message("Yes", "max_tokens")}
    response = asyncio.run(client.generate("A"))
    assert (response.text, response.record.stop_reason) == ("Yes", "max_tokens")
    assert response.record.batch


def test_a_full_queue_is_submitted_without_waiting(server, make):
    client = make(max_requests=2)
    assert ask(client, *"ABCDE") == [f"To {letter}" for letter in "ABCDE"]
    assert sizes(server) == [2, 2, 1]


def test_batches_keep_to_their_size_in_bytes(server, make):
    client = make(max_bytes=2000)
    texts = [letter * 400 for letter in "ABCDE"]
    assert ask(client, *texts) == [f"To {text}" for text in texts]
    assert sum(sizes(server)) == 5 and len(server.batches) > 1
    for batch in server.batches.values():
        assert len(json.dumps({"requests": batch["requests"]})) <= 2000
    with pytest.raises(ValueError, match="over the limit of a batch"):
        ask(client, "A" * 2000)


def test_what_is_asked_while_a_batch_is_under_way_is_the_next_one(server, make):
    client = make()

    async def main():
        first = asyncio.create_task(client.generate("A"))
        while not server.batches:
            await asyncio.sleep(0.001)
        again = asyncio.create_task(client.generate("A"))
        await asyncio.gather(first, again, client.generate("B"))

    asyncio.run(main())
    assert server.sent() == {"A": 1, "B": 1}


def test_a_batch_costs_half(server, make):
    client = make()
    ask(client, "A", "B")
    assert client.ledger.cost == pytest.approx(2 * (100 + 10 * 10) / 1e6 / 2)
    assert client.ledger.reserved == 0
    assert restarted(client, make).ledger.earlier == pytest.approx(client.ledger.cost)
    alone, batched = Ledger(PRICES).estimate([client.request("C")]), client.estimate(["C", "A"])
    assert alone.cost and batched.cost == pytest.approx(alone.cost / 2)


def flaky(results: dict[str, list[str]]):
    """Outcomes of requests by their text, one for each submission; then they succeed."""
    errors = {"errored": "api_error", "invalid": "invalid_request_error"}

    def outcome(request: dict) -> dict:
        text = text_of(request["params"])
        kind = results[text].pop(0) if results.get(text) else "succeeded"
        if kind in errors:
            detail = {"type": errors[kind], "message": f"no {KEY}"}
            return {"type": "errored", "error": {"type": "error", "error": detail}}
        if kind == "succeeded":
            return {"type": "succeeded", "message": message(f"To {text}")}
        if kind == "malformed":
            return {"type": "succeeded", "message": {"type": "message", "content": 3}}
        return {"type": kind}

    return outcome


def test_every_outcome_of_a_request_in_a_batch(server, make, tmp_path):
    server.outcome = flaky(
        {
            "errored": ["errored", "errored"],
            "expired": ["expired"],
            "malformed": ["malformed"],
            "hopeless": ["errored"] * 3,
            "invalid": ["invalid"],
            "canceled": ["canceled"],
        }
    )
    texts = ["fine", "errored", "expired", "malformed", "hopeless", "invalid", "canceled"]
    client = make(resubmissions=2)
    assert ask(client, *texts) == [
        "To fine",
        "To errored",
        "To expired",
        "To malformed",
        "failed: errored: api_error: no [redacted]",
        "failed: errored: invalid_request_error: no [redacted]",
        "failed: the batch was canceled",
    ]
    assert sizes(server) == [7, 4, 2]
    assert client.ledger.outcomes == {"end_turn": 4, "failed": 3}
    assert client.store.get(client.request("errored").key).attempts == 3
    failures = [r.attempts for r in client.store.failures]
    assert sorted(failures) == [1, 1, 3]

    again = restarted(client, make)  # failures are asked again, answers are not
    assert ask(again, *texts)[4:] == ["To hopeless", "To invalid", "To canceled"]
    assert sizes(server) == [7, 4, 2, 3]
    files = [p.read_text(encoding="utf-8") for p in tmp_path.rglob("*") if p.is_file()]
    assert files and not any(KEY in text for text in files)


def test_every_call_is_tried_again(server, make):
    server.next(error(429), path=CREATE)
    server.next(CUT, path="GET /v1/messages/batches")
    server.next(error(529), Reply(b"{"), path="GET /v1/messages/batches/msgbatch_0")
    server.next(CUT, Reply(b'{"custom_id": "x', 200), path=results_of(0))
    assert ask(make(), "A", "B") == ["To A", "To B"]
    assert server.sent() == {"A": 1, "B": 1}


def test_a_stream_of_results_that_breaks_off_is_read_again_without_counting_twice(server, make):
    client = make()
    server.on_batch = lambda: server.next(half(), path=results_of(0))

    def half() -> Reply:
        lines = [json.dumps(line) for line in server.batches["msgbatch_0"]["results"]]
        return Reply(f"{lines[0]}\n{lines[1][:50]}".encode())

    assert ask(client, "A", "B") == ["To A", "To B"]
    assert server.calls[results_of(0)] == 2
    assert client.ledger.outcomes == {"end_turn": 2}
    lines = (client.store.path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2


@pytest.mark.parametrize("status", [400, 401, 413])
def test_a_submission_that_is_refused_fails_and_leaves_nothing_behind(server, make, status):
    server.next(error(status), path=CREATE)
    client = make()
    assert ask(client, "A", "B") == [f"failed: HTTP {status}: no"] * 2
    assert under_way(client) == []
    assert ask(client, "A", "B") == ["To A", "To B"]


@pytest.mark.parametrize("reply", [CUT, error(500), Reply(b"{"), Reply(b"ok")], ids=str)
def test_a_submission_whose_answer_was_lost_is_found_and_not_made_again(server, make, reply):
    server.next(("made", reply), path=CREATE)
    client = make()
    assert ask(client, "A", "B") == ["To A", "To B"]
    assert sizes(server) == [2]
    assert under_way(client) == []


def test_a_submission_that_did_not_arrive_is_made_again(server, make):
    server.next(CUT, error(503), path=CREATE)
    assert ask(make(), "A", "B") == ["To A", "To B"]
    assert sizes(server) == [2]


def test_another_s_batch_of_the_same_size_is_told_by_its_results(server, make):
    ask(make(), "before", "then")  # a batch that was there before cannot be ours

    def other() -> None:
        server.on_batch = lambda: None
        requests = [
            {"custom_id": f"x{i}", "params": {"messages": [{"content": "x"}]}} for i in "12"
        ]
        server.respond("POST", "/v1/messages/batches", {"requests": requests})

    server.next(CUT, path=CREATE)
    server.script[CREATE].append(None)
    real = server.respond

    def respond(method, target, body):  # another client's batch, while ours is cut off
        if method == "POST" and len(server.batches) == 1 and server.calls[CREATE] == 1:
            server.calls["other"] += 1
            reply = real(method, target, body)
            other()
            return reply
        return real(method, target, body)

    server.respond = respond
    client = make()
    assert ask(client, "A", "B") == ["To A", "To B"]
    assert server.sent() == {"before": 1, "then": 1, "x": 2, "A": 1, "B": 1}
    assert [server.calls[results_of(i)] for i in range(3)] == [1, 1, 1]
    assert under_way(client) == []
    keys = {client.request(text).key for text in ("before", "then", "A", "B")}
    assert set(client.store.answers) == keys


def test_answers_are_on_disk_before_their_batch_is_forgotten(make, monkeypatch, tmp_path):
    client = make()
    path = tmp_path / "store" / "answers.jsonl"
    synced = []
    real = os.fsync

    def fsync(fd: int) -> None:
        real(fd)
        if os.path.samestat(os.fstat(fd), path.stat()):
            synced.append(
                (len(path.read_text(encoding="utf-8").splitlines()), len(under_way(client)))
            )

    monkeypatch.setattr(os, "fsync", fsync)
    ask(client, "A", "B")
    assert synced == [(2, 1)]


def stop_at(seconds: float):
    """A sleep that ends the run, as a kill would, when it is asked to wait so long."""

    async def sleep(asked: float) -> None:
        if asked == seconds:
            for task in asyncio.all_tasks():
                task.cancel()
        await asyncio.sleep(0)

    return sleep


def killed_while_polling(make) -> BatchAnthropicClient:
    client = make(sleep=stop_at(77.0), poll_first=77.0)
    with pytest.raises(asyncio.CancelledError):
        ask(client, "A", "B", "C")
    return client


def test_a_run_killed_while_polling_finds_its_batch_again(server, make):
    client = killed_while_polling(make)
    [file] = under_way(client)
    assert file["id"] == "msgbatch_0" and len(file["keys"]) == 3
    again = restarted(client, make)
    assert ask(again, "C", "A", "D") == ["To C", "To A", "To D"]
    assert server.sent() == dict.fromkeys("ABCD", 1)
    answer = restarted(again, make).store.get(client.request("B").key)
    assert answer and answer.text == "To B"
    assert under_way(again) == []


def test_a_resumed_batch_counts_against_the_budget(server, make):
    client = killed_while_polling(make)
    [file] = under_way(client)
    assert file["reserved"] > 0
    again = restarted(client, make, max_cost=file["reserved"])

    async def main():
        server.polls = 10**9
        asked = asyncio.create_task(again.generate("A"))
        for _ in range(3):
            await asyncio.sleep(0)
        held = again.ledger.reserved
        server.polls = 1
        return held, (await asked).text

    assert asyncio.run(main()) == (file["reserved"], "To A")


def test_requests_of_a_resumed_batch_that_failed_are_submitted_again(server, make):
    server.outcome = flaky({"A": ["expired"], "B": ["invalid", "invalid"]})
    client = restarted(killed_while_polling(make), make)
    assert ask(client, *"ABC")[::2] == ["To A", "To C"]
    assert server.sent() == {"A": 2, "B": 2, "C": 1}


def test_a_run_that_could_not_read_its_results_reads_them_later(server, make):
    server.next(*[CUT] * 2, path=results_of(0))
    client = make(attempts=2)
    assert [text[:18] for text in ask(client, "A", "B")] == ["failed: the connec"] * 2
    assert ask(client, "A", "B") == ["To A", "To B"]  # in the same process
    assert sizes(server) == [2]


def test_answers_that_were_stored_before_a_kill_are_not_stored_twice(server, make, tmp_path):
    client = make()
    path = []
    server.on_batch = lambda: path.extend(client.folder.glob("*.json"))

    async def main():
        asked = asyncio.create_task(client.answer_all(["A", "B"]))
        while not (path and json.loads(path[0].read_text(encoding="utf-8"))["id"]):
            await asyncio.sleep(0.001)
        kept = path[0].read_text(encoding="utf-8")
        await asked
        return kept

    server.polls = 30
    kept = asyncio.run(main())
    path[0].write_text(
        kept, encoding="utf-8"
    )  # as if killed between the answers and the removal of the file
    again = restarted(client, make)
    assert ask(again, "A", "C") == ["To A", "To C"]
    assert server.sent() == {"A": 1, "B": 1, "C": 1}
    assert under_way(again) == []
    lines = (tmp_path / "store" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert Counter(json.loads(line)["text"] for line in lines) == {"To A": 1, "To B": 1, "To C": 1}


def test_a_batch_that_the_server_no_longer_has_is_put_aside_and_asked_again(server, make):
    client = killed_while_polling(make)
    server.next(error(404, "not_found_error"), path="GET /v1/messages/batches/msgbatch_0")
    again = restarted(client, make)
    assert ask(again, *"AB") == ["To A", "To B"]
    assert sizes(server) == [3, 2]
    assert len(list(again.folder.glob("*.gone"))) == 1
    assert again.ledger.uncertain > 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.slow
def test_a_process_killed_before_it_hears_of_its_batch_finds_it_again(server, make, tmp_path):
    code = """
import asyncio, sys
from delphi_adapters.clients import BatchAnthropicClient
client = BatchAnthropicClient("claude-test", store=sys.argv[1], base_url=sys.argv[2], idle=0.0)
asyncio.run(client.answer_all(["A", "B"]))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "store"), server.url]
    with subprocess.Popen(command) as process:
        server.on_batch = lambda: (process.send_signal(signal.SIGKILL), process.wait())
        assert process.wait() == -signal.SIGKILL
    server.on_batch = lambda: None
    client = make()
    [file] = under_way(client)
    assert file["id"] is None and len(file["keys"]) == 2
    assert ask(client, "A", "B", "C") == ["To A", "To B", "To C"]
    assert server.sent() == {"A": 1, "B": 1, "C": 1}


def test_what_the_budget_has_no_room_for_waits_and_then_stops(server, make):
    each = (100 + 10 * 10) / 1e6 / 2
    worst = Ledger(PRICES).worst_case(make().request("A", max_tokens=100), batch=True)
    assert worst > 4 * each
    client = make(ledger=Ledger(PRICES, max_cost=2 * worst + 0.5 * each), prices=None)
    with pytest.raises(BudgetExceeded):
        ask(client, *"ABCDEFGHI", max_tokens=100)
    done = sizes(server)
    assert done[0] == 2  # both reserved; the rest waited for what they left over
    assert client.ledger.cost == pytest.approx(sum(done) * each)
    assert client.ledger.max_cost - worst < client.ledger.cost <= client.ledger.max_cost
    assert client.ledger.reserved == 0 and under_way(client) == []

    more = restarted(client, make, max_cost=100.0)
    assert len(ask(more, *"ABCDEFGHI", max_tokens=100)) == 9
    assert server.sent() == dict.fromkeys("ABCDEFGHI", 1)


def test_settings_that_cannot_work_are_refused(make):
    with pytest.raises(ValueError, match="need a store on disk"):
        make(store=None)
    with pytest.raises(ValueError, match="at least 1"):
        make(max_requests=0)


def test_a_damaged_file_of_a_batch_is_named(make):
    client = make()
    client.folder.mkdir()
    (client.folder / "x.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"x\.json is not the file of a batch"):
        ask(client, "A")
