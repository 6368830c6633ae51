"""Texts for audits."""

import json
import random


def write_other_texts(path):
    """Texts that no run has seen, to fit the maps between two models to."""
    draw = random.Random(1)
    words = ["river", "tower", "apple", "night", "paper", "stone", "music", "seven", "winter"]
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(200):
            file.write(json.dumps({"text": " ".join(draw.choices(words, k=20))}) + "\n")
