"""What a client sent to a server, as a text that a person can read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def read_answers(folder: Path) -> list[dict[str, Any]]:
    """The records of a store of answers, in the order in which they came."""
    lines = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def transcript(bodies: list[dict[str, Any]], keys: list[str]) -> str:
    """Requests and the keys of their answers, in an order that does not depend on time.

    A request that goes on with another one's conversation shows only what is new.
    """
    requests = sorted(zip(bodies, keys, strict=True), key=lambda one: _order(one[0]))
    parts, before, systems = [], [], []
    for body, key in requests:
        body = dict(body)
        messages, system = body.pop("messages"), body.pop("system", None)
        parts.append(f"======== {key} {json.dumps(body)}")
        if system not in systems:
            systems.append(system)
            for one in system or []:
                rest = {name: value for name, value in one.items() if name != "text"}
                parts.append(f"-------- system {len(systems)} {json.dumps(rest)}\n{one['text']}")
        else:
            parts.append(f"-------- system {systems.index(system) + 1}, as above")
        shared = len(before) if before and messages[: len(before)] == before else 0
        if shared:
            parts.append(f"-------- {shared} messages, as above")
        for one in messages[shared:]:
            assert one.keys() == {"role", "content"}
            parts.append(f"-------- {one['role']}\n{one['content']}")
        before = messages
    return visible("\n".join(parts)) + "\n"


def visible(text: str) -> str:
    """Text whose invisible characters and ends of lines can be seen in a diff."""
    text = re.sub(r"[^\n -~\u00a1-\uffff]", lambda found: f"\\x{ord(found[0]):02x}", text)
    return re.sub(r" +$", lambda found: "·" * len(found[0]), text, flags=re.MULTILINE)


def _order(body: dict[str, Any]) -> tuple[str, str, int]:
    messages = body["messages"]
    return json.dumps(body.get("system")), json.dumps(messages[0]), len(messages)
