"""Conversations as role and content, read from the shapes in which data sets keep them."""

import ast
import io
import json
import tokenize
from collections.abc import Mapping, Sequence
from typing import Any

CHAT_COLUMNS = ("messages", "conversation", "conversations")
EXTRAS = "extras"
"""Key of a message under which a JSON object holds what templates may write besides content."""
OF_CONVERSATION = ("tools", "documents")
REASONING = ("reasoning_content", "reasoning", "thinking")
_OF_MESSAGE = (*REASONING, "name", "tool_calls", "tool_call_id", "function_call")
_SHAPES = (
    'A conversation is a list of messages with the keys "role" and "content" (or "from" and '
    '"value"), or that list as JSON; content is a string, or a list of strings and of parts with '
    'a "text"'
)
_USER = ("user", "human", "prompter")
_ASSISTANT = ("assistant", "gpt", "chatgpt", "bing", "bard", "claude", "model", "bot", "ai")
_ROLES = {
    **dict.fromkeys(_USER, "user"),
    **dict.fromkeys(_ASSISTANT, "assistant"),
    **{role: role for role in ("system", "tool", "developer")},
}
_SHAREGPT_ROLES = _ROLES | dict.fromkeys(("function", "function_response", "observation"), "tool")


class ShapeError(ValueError):
    """A conversation of a shape that is not known; says what was found and what is read."""


def read_conversation(value: Any) -> list[Any]:
    """The messages in one cell of a table: a list, JSON or Python's repr of one, or columns.

    A missing conversation has no messages. Raises ShapeError for anything else.
    """
    if isinstance(value, str):
        value = _parse(value)
    if value is None:
        return []
    if isinstance(value, Mapping):
        wrapped = next((value[key] for key in CHAT_COLUMNS if value.get(key) is not None), None)
        if wrapped is not None:
            return read_conversation(wrapped)
        columns = {k: v for k, v in value.items() if _is_list(v)}
        if {*columns} & {"role", "from"}:
            return _from_columns(columns)
        return [value]
    if not _is_list(value):
        raise ShapeError(f"{_SHAPES}; found {_describe(value)}.")
    messages = [_parse_message(message) for message in value if message is not None]
    for message in messages:
        if not isinstance(message, Mapping):
            raise ShapeError(f"{_SHAPES}; found a list with {_describe(message)} in it.")
    return messages


def looks_like_conversation(text: str) -> bool:
    """Whether a string holds messages, as JSON or as Python prints them."""
    if not text.lstrip().startswith(("[", "{", "array(")):
        return False
    try:
        messages = read_conversation(text)
        return bool(messages) and bool(normalize_messages(messages))
    except ShapeError:
        return False


def normalize_messages(
    messages: Sequence[Mapping[str, Any] | None], conversation: Mapping[str, Any] | None = None
) -> list[dict[str, str]]:
    """Messages as role and content, from those keys or from ShareGPT's "from" and "value".

    A key that is null counts as missing, a null message is left out. Content given as a list of
    parts is reduced to its text, a missing one to "". Speakers are named as chat templates name
    them. Reasoning, tool calls and what else templates write is kept as a JSON object under
    `EXTRAS`, which other messages do not have; that of the first message also holds what
    `conversation` has of `OF_CONVERSATION`.

    Raises ShapeError for a message of another shape.
    """
    result = [_normalize_message(message) for message in messages if message is not None]
    about = {
        key: value
        for key in OF_CONVERSATION
        if conversation and (value := _objects(conversation.get(key)))
    }
    if about and result:
        first = json.loads(result[0].get(EXTRAS, "{}"))
        result[0][EXTRAS] = json.dumps(first | {"conversation": about}, ensure_ascii=False)
    return result


def extras(message: Mapping[str, Any]) -> dict[str, Any]:
    """What a normalized message holds besides role and content."""
    return json.loads(message[EXTRAS]) if message.get(EXTRAS) else {}


def pieces(messages: Sequence[Mapping[str, Any]]) -> list[tuple[int, str, str]]:
    """What was said, in order: number of the message, who or what says it, and the text.

    `messages` are normalized; a message's reasoning comes before its content.
    """
    result = []
    for number, message in enumerate(messages):
        reasoning = extras(message).get("reasoning_content") if message.get(EXTRAS) else None
        if isinstance(reasoning, str):
            result.append((number, "reasoning", reasoning))
        result.append((number, message["role"], message["content"]))
    return result


def _normalize_message(message: Mapping[str, Any]) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise ShapeError(f"{_SHAPES}; found {_describe(message)} for a message.")
    if message.keys() <= {"role", "content", EXTRAS} and isinstance(message.get(EXTRAS), str):
        return dict(message)
    found = {key: message[key] for key in _OF_MESSAGE if message.get(key) not in (None, [], {}, "")}
    content = next((message[k] for k in ("content", "value") if message.get(k) is not None), None)
    has_content = "content" in message or "value" in message or bool(found)
    if not ({"role", "from"} & message.keys() and has_content):
        raise ShapeError(
            'A message needs the keys "role" and "content" (or "from" and "value"); one has '
            f"{sorted(map(str, message))}."
        )
    text, reasoning, other = _text(content)
    result = {"role": _role(message), "content": text}
    reasoning = next((found[key] for key in REASONING if key in found), reasoning or None)
    if reasoning is not None:
        found["reasoning_content"] = reasoning
    if other:
        found["parts"] = other
    if found:
        result[EXTRAS] = json.dumps(_without_nulls(found), ensure_ascii=False, default=str)
    return result


def _role(message: Mapping[str, Any]) -> str:
    names = _ROLES if message.get("role") is not None else _SHAREGPT_ROLES
    role = message.get("role")
    role = message.get("from") if role is None else role
    if role is None or role == "":
        return "user"
    if not isinstance(role, str):
        raise ShapeError(f"A message's role is a name; found {_describe(role)}.")
    return names.get(role.strip().lower(), role)


def _text(content: Any) -> tuple[str, str, list[str]]:
    """The text of a content, the reasoning in it, and the kinds of its other parts."""
    if content is None:
        return "", "", []
    if isinstance(content, str):
        return content, "", []
    if isinstance(content, Mapping) and _is_list(content.get("parts")):
        content = content["parts"]
    text, reasoning, other = "", "", []
    for part in content if _is_list(content) else [content]:
        if isinstance(part, str):
            text += part
        elif isinstance(part, Mapping):
            known = _without_nulls(part)
            kind = known.get("type")
            if isinstance(known.get("text"), str):
                text += known["text"]
            elif kind == "refusal" and isinstance(known.get(kind), str):
                text += known[kind]
            elif isinstance(known.get(kind), str) and kind in ("thinking", "reasoning"):
                reasoning += known[kind]
            elif isinstance(kind, str) and kind != "text":
                other.append(kind)
            elif known.keys() - {"type"}:
                raise ShapeError(
                    f"{_SHAPES}; found a part with the keys {sorted(map(str, known))}."
                )
        elif part is not None:
            raise ShapeError(f"{_SHAPES}; found {_describe(part)} for content.")
    return text, reasoning, other


def _from_columns(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Messages from one list for each of their keys, as `datasets.Sequence` used to keep them."""
    if len({len(values) for values in columns.values()}) > 1:
        sizes = {key: len(values) for key, values in columns.items()}
        raise ShapeError(f"The columns of a conversation are of unequal length: {sizes}.")
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def _parse_message(message: Any) -> Any:
    if isinstance(message, str) and message.lstrip().startswith("{"):
        return _parse(message)
    return message


def _objects(value: Any) -> list[Any]:
    """Tools or documents as a list of objects, empty where they are not that."""
    try:
        value = _parse(value) if isinstance(value, str) and value.strip() else value
        value = [_parse_message(item) for item in value] if _is_list(value) else []
    except ShapeError:
        return []
    objects = [item for item in value if item is not None]
    return _without_nulls(objects) if all(isinstance(item, Mapping) for item in objects) else []


def _parse(text: str) -> Any:
    """What a string holds as JSON or as Python prints it; None for a blank one."""
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        tree = ast.parse(_with_commas(text.strip()), mode="eval").body
        return ast.literal_eval(_Arrays().visit(tree))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError):
        shown = text if len(text) <= 60 else text[:60] + "..."
        raise ShapeError(f"{_SHAPES}; found the plain text {shown!r}.") from None


class _Arrays(ast.NodeTransformer):
    """Takes `array([...], dtype=object)` for the list in it."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "array" and node.args:
            return node.args[0]
        return node


def _with_commas(text: str) -> str:
    """With the commas that numpy leaves out between the dictionaries of an array."""
    lines = text.splitlines(keepends=True)
    places = []
    before = ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            continue
        if before == "}" and token.string == "{":
            places.append(token.start)
        before = token.string
    for row, column in reversed(places):
        line = lines[row - 1]
        lines[row - 1] = line[:column] + "," + line[column:]
    return "".join(lines)


def _without_nulls(value: Any) -> Any:
    """Without the keys that a table had to fill with nulls."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if _is_list(value):
        return [_without_nulls(item) for item in value]
    return value


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _describe(value: Any) -> str:
    if isinstance(value, str):
        return f"the string {value[:40]!r}"
    if isinstance(value, Mapping):
        return f"an object with the keys {sorted(map(str, value))}"
    if _is_list(value):
        return "a list"
    return "nothing" if value is None else f"{type(value).__name__} {value!r}"
