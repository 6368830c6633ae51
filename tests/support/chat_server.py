"""The Chat Completions API on the loopback, misbehaving on demand."""

from __future__ import annotations

from typing import Any

from tests.support.messages_server import MessagesServer, Reply, text_of

KEY = "sk-test-0123456789abcdef"
_PATH = "/v1/chat/completions"


def completion(text: str | None = "An answer.", reason: str = "stop", **fields: Any) -> dict:
    message = {"role": "assistant", "content": text, "refusal": fields.pop("refusal", None)}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "test",
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        **fields,
    }


def refused(status: int, text: str = "no", **headers: str) -> Reply:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"error": {"message": text, "type": "some_error", "param": None, "code": None}}
    return Reply(body, status, names)


class ChatServer(MessagesServer):
    """A MessagesServer that is asked for completions, and answers with them."""

    def __init__(self):
        super().__init__()
        self.answer = lambda body: completion(f"To {text_of(body)}")

    def respond(self, method: str, target: str, body: dict | None) -> Any:
        known = "/v1/messages" if target == _PATH else "/unknown"
        return super().respond(method, known, body)
