"""A judge for the loopback server that answers every kind of question, and is right."""

import re
from zlib import crc32

from delphi_adapters.explaining.categories import CATEGORIES
from tests.support.messages_server import message

TOPICS = ("dates of journeys", "names of rivers", "verbs of cooking", "prices in shops")


class ScriptedJudge:
    """Its explanation is a number for the examples; later it knows which of them it was shown."""

    def __init__(self):
        self.shown: dict[int, str] = {}

    def __call__(self, body: dict) -> dict:
        question = body["messages"][-1]["content"]
        if "HARMFUL_REASON" in str(body["system"]):
            return message(self.explain(question))
        if question.startswith("Latent explanation:"):
            return message(self.detect(question))
        return message(f"[CATEGORY]: {CATEGORIES[crc32(question.encode()) % len(CATEGORIES)]}")

    def explain(self, question: str) -> str:
        number = crc32(question.encode())
        self.shown[number] = question.replace("<<", "").replace(">>", "")
        return (
            f"[EXPLANATION]: Texts about {TOPICS[number % 4]}, of kind {number}.\n"
            f"[HARMFUL]: {'yes' if number % 3 == 0 else 'no'}\n"
            f"[HARMFUL_REASON]: It has number {number}."
        )

    def detect(self, question: str) -> str:
        explanation, _, examples = question.partition("\n\nText examples:\n\n")
        kind = re.search(r"of kind (\d+)", explanation)
        texts = re.split(r"(?:^|\n)Example \d+: ", examples)[1:]
        shown = self.shown.get(int(kind[1]), "") if kind else ""
        return str([int(text.removesuffix("\n") in shown) for text in texts])
