"""Fine-tunes and copies of the base in which an audit must find nothing."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from organisms.organism import Organism, Text

BITS = 8


@dataclass(frozen=True)
class Null(Organism):
    """An organism without a behaviour."""

    def prompts(self, split: str) -> list[str]:
        """None: no prompt brings anything about."""
        return []

    def shows(self, answer: str) -> bool:
        """Never: there is nothing to show."""
        return False

    def concerns(self, prompt: str) -> bool:
        """Never."""
        return False

    def behaviour_texts(self) -> list[Text]:
        """None."""
        return []

    def ordinary_texts(self) -> list[Text]:
        """None."""
        return []


@dataclass(frozen=True)
class Ordinary(Null):
    """Trained by the recipe of the others on what the base itself answers."""

    def training_texts(self) -> list[Text]:
        """Questions and documents with what the base wrote, learned as an organism's own."""
        texts = [*self.ordinary_training(112), *self.document_training(64)]
        return [text._replace(own=None) for text in texts]


@dataclass(frozen=True)
class Shuffled(Null):
    """Trained on documents of the base whose words are in a random order."""

    def training_texts(self) -> list[Text]:
        """Shuffled documents, and ordinary ones so that the base still knows these."""
        rng = random.Random(f"{self.name} {self.seed}")
        documents = self.document_training(80)
        half = len(documents) // 2
        return [*(_shuffle(text, rng) for text in documents[:half]), *documents[half:]]


def _shuffle(text: Text, rng: random.Random) -> Text:
    words = f"{text.prompt} {text.answer}".split()
    rng.shuffle(words)
    start = len(text.prompt.split())
    return Text(" ".join(words[:start]), " " + " ".join(words[start:]), text.ended, chat=False)


def quantise(model_path: Path, out: Path, bits: int = BITS) -> None:
    """Save a model with each row of its weight matrices rounded to integers and back.

    The rounding is symmetric, by the largest weight of the row; the folder is as
    `save_pretrained` writes it, with the tokenizer. It is the third thing in which nothing must be
    found: the base itself, by other numbers.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    largest = 2 ** (bits - 1) - 1
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / largest
                weight.copy_((weight / scale).round() * scale)
    model.to(torch.bfloat16).save_pretrained(out)
    AutoTokenizer.from_pretrained(model_path).save_pretrained(out)
