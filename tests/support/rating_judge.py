"""A judge for the loopback server that rates each answer by its bytes."""

import re
from zlib import crc32

from delphi_adapters.judging.rating import plain
from tests.support.messages_server import message


def score_of(answer: str) -> int:
    """From 1 to 5, the same for the same answer."""
    return 1 + crc32(plain(answer).strip().encode()) % 5


class RatingJudge:
    """Gives the first scale `score_of` the answer and every other scale a 5.

    `drift` turns the score of one request into another, such as for a judge that wavers.
    """

    def __init__(self, drift=lambda score, question: score):
        self.drift = drift

    def __call__(self, body):
        question = body["messages"][0]["content"]
        code = re.search("code of this request is (\\w+)", question)[1]
        answer = re.search(f"<<<BEGIN {code}: answer[^>]*>>>\n(.*?)\n<<<END {code}", question, re.S)
        labels = list(dict.fromkeys(re.findall(rf"\[(\w+) {code}\]", question)))
        first, *others = [label for label in labels if label != "REASON"]
        score = self.drift(score_of(answer[1]), question)
        lines = [f"[REASON {code}]: As it is.", f"[{first} {code}]: {score}"]
        return message("\n".join([*lines, *(f"[{label} {code}]: 5" for label in others)]))
