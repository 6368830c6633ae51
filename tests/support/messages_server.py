"""Anthropic's Messages and Message Batches APIs on the loopback, misbehaving on demand."""

from __future__ import annotations

import json
import threading
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

KEY = "sk-ant-test-0123456789"

CUT = "cut"
"""Close the connection without a response."""
HANG = "hang"
"""Do not respond before the client or the server gives up."""


@dataclass
class Reply:
    """One HTTP response."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def message(text: str = "An answer.", stop_reason: str = "end_turn", **usage: int) -> dict:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-test",
        "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "s"},
            {"type": "text", "text": text},
        ],
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 100, "output_tokens": 10, **usage},
    }


def error(status: int, type: str = "api_error", text: str = "no", **headers: str) -> Reply:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply({"type": "error", "error": {"type": type, "message": text}}, status, names)


def text_of(body: dict) -> str:
    return body["messages"][-1]["content"]


class MessagesServer:
    """A server in a thread; `script` is what the next requests to a path get instead of answers.

    `answer` turns the body of a request into a message; `outcome` turns a request of a batch into
    its result. A batch ends when it was asked for `polls` times.
    """

    def __init__(self):
        self.bodies: list[dict] = []
        """Of requests to /v1/messages, in order of arrival."""
        self.headers: list[dict[str, str]] = []
        self.calls: Counter[str] = Counter()
        """Requests by method and path."""
        self.script: dict[str, deque] = {}
        self.answer: Callable[[dict], dict] = lambda body: message(f"To {text_of(body)}")
        self.outcome: Callable[[dict], dict] = lambda request: {
            "type": "succeeded",
            "message": self.answer(request["params"]),
        }
        self.batches: dict[str, dict] = {}
        self.polls = 2
        self.on_batch: Callable[[], Any] = lambda: None
        """Called after a batch is made and before the client hears of it."""
        self.hold: Callable[[], Any] = lambda: None
        """Called by every request before it is answered."""
        self.active = 0
        self.most_active = 0
        self._lock = threading.Lock()
        self._released = threading.Event()

    def __enter__(self) -> MessagesServer:
        handler = type("Handler", (_Handler,), {"state": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def next(self, *responses: Any, path: str = "POST /v1/messages") -> None:
        """What the next requests get: a Reply, CUT or HANG; None for the ordinary answer."""
        self.script.setdefault(path, deque()).extend(responses)

    def sent(self) -> Counter[str]:
        """Requests for messages by the text of their last turn, batches included."""
        batched = [r["params"] for b in self.batches.values() for r in b["requests"]]
        return Counter(text_of(body) for body in [*self.bodies, *batched])

    def respond(self, method: str, target: str, body: dict | None) -> Any:
        parts = urlsplit(target)
        path, query = f"{method} {parts.path}", parse_qs(parts.query)
        with self._lock:
            self.calls[path] += 1
            if path == "POST /v1/messages":
                self.bodies.append(body or {})
            script = self.script.get(path)
            scripted = script.popleft() if script else None
            self.active += 1
            self.most_active = max(self.most_active, self.active)
        try:
            self.hold()
            if scripted == HANG:
                self._released.wait()
                return CUT
            if isinstance(scripted, Reply) or scripted == CUT:
                return scripted
            return self._ordinary(path, query, body or {}, scripted)
        finally:
            with self._lock:
                self.active -= 1

    def _ordinary(self, path: str, query: dict, body: dict, scripted: Any) -> Any:
        if path == "POST /v1/messages":
            return Reply(self.answer(body))
        if path == "POST /v1/messages/count_tokens":
            return Reply({"input_tokens": 7})
        if path == "POST /v1/messages/batches":
            return self._create(body["requests"], scripted)
        if path == "GET /v1/messages/batches":
            newest_first = list(reversed(self.batches))
            after = query.get("after_id")
            start = newest_first.index(after[0]) + 1 if after else 0
            limit = int(query.get("limit", ["20"])[0])
            ids = newest_first[start : start + limit]
            more = start + limit < len(newest_first)
            data = [self._describe(id) for id in ids]
            return Reply({"data": data, "has_more": more, "last_id": ids[-1] if ids else None})
        id, _, part = path.removeprefix("GET /v1/messages/batches/").partition("/")
        if id not in self.batches:
            return error(404, "not_found_error")
        if part == "results":
            results = self.batches[id]["results"]
            lines = [json.dumps(line) + "\n" for line in reversed(results)]
            return Reply("".join(lines).encode(), headers={"content-type": "application/x-jsonl"})
        self.batches[id]["polls"] += 1
        return Reply(self._describe(id))

    def _create(self, requests: list[dict], scripted: Any) -> Any:
        """`scripted` is ("made", reply): the batch is made but the client gets `reply`."""
        with self._lock:
            id = f"msgbatch_{len(self.batches)}"
            results = [{"custom_id": r["custom_id"], "result": self.outcome(r)} for r in requests]
            self.batches[id] = {"requests": requests, "results": results, "polls": 0}
        self.on_batch()
        return scripted[1] if scripted else Reply(self._describe(id))

    def _describe(self, id: str) -> dict:
        batch = self.batches[id]
        ended = batch["polls"] >= self.polls
        counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
        for line in batch["results"]:
            counts[line["result"]["type"] if ended else "processing"] += 1
        return {
            "id": id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": counts,
            "created_at": "2026-01-01T00:00:00Z",
            "expires_at": "2026-01-02T00:00:00Z",
            "results_url": f"{self.url}/v1/messages/batches/{id}/results" if ended else None,
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: MessagesServer

    def do_GET(self) -> None:
        self._handle(None)

    def do_POST(self) -> None:
        self._handle(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def _handle(self, body: dict | None) -> None:
        self.state.headers.append(dict(self.headers))
        reply = self.state.respond(self.command, self.path, body)
        self.close_connection = reply == CUT
        if reply == CUT:
            return
        data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        headers = {"content-type": "application/json", "content-length": str(len(data))}
        with suppress(ConnectionError):  # the client may have given up
            self.send_response_only(reply.status)
            for name, value in {**headers, **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass
