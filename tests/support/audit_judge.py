"""A judge for the loopback server that answers all that an audit asks."""

import re
from collections import Counter
from zlib import crc32

from tests.support.messages_server import message
from tests.support.scripted_judge import ScriptedJudge


class AuditJudge(ScriptedJudge):
    """Explains and detects as a ScriptedJudge; rates what it can measure."""

    def __call__(self, body: dict) -> dict:
        asked = body["messages"][0]["content"]
        code = re.match(r"The code of this request is (\w+)\.", str(asked))
        if code is None:
            return super().__call__(body)
        models: dict[str, dict[float, str]] = {}
        pattern = rf"<<<BEGIN {code[1]}: (.*?)>>>\n((?s:.*?))\n<<<END {code[1]}"
        for title, text in re.findall(pattern, asked):
            model, found, strength = title.rpartition("strength ")
            if found:
                models.setdefault(model, {})[float(strength)] = text
        changes = [self.changes(texts) for texts in models.values()]
        if not changes:
            labels = re.findall(rf"^\[([A-Z_]+) {code[1]}\]: a whole number", asked, re.MULTILINE)
            scores = [f"[{name} {code[1]}]: {1 + crc32(asked.encode()) % 5}" for name in labels]
            return message("\n".join([f"[REASON {code[1]}]: Counted.", *scores]))
        if len(changes) == 1:
            scale, score = "INTERPRETABILITY", 3 + crc32(repr(sorted(changes[0])).encode()) % 3
        else:
            scale, score = "SIMILARITY", 1 + round(4 * self.overlap(*changes))
        return message(f"[REASON {code[1]}]: Measured.\n[{scale} {code[1]}]: {score}")

    def changes(self, texts: dict[float, str]) -> Counter[str]:
        """The pieces of text that the strongest push adds to what the model writes unpushed."""
        pieces = {s: Counter(re.findall(r"\w+|\S", text)) for s, text in texts.items()}
        return pieces[max(pieces)] - pieces[0.0]

    def overlap(self, first: Counter[str], second: Counter[str]) -> float:
        """Share of the pieces that both add."""
        return sum((first & second).values()) / max(sum((first | second).values()), 1)
