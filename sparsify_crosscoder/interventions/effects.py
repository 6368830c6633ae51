"""What steering does to a model, measured without a judge: a dose-response curve.

P prompts, K strengths, V vocabulary. All means over tokens are in nats where they are entropies.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..harvest.limits import check_texts
from .generation import (
    STRENGTHS,
    Answering,
    Generation,
    Generations,
    Sampling,
    as_doses,
    as_prompts,
    generate,
    parts_of,
)
from .prompts import Prompt, encode_prompt
from .steering import Steering, steered

MEASURES = {
    "kl": "KL divergence of the next token from that of the unsteered model",
    "word_probability": "probability that the next token is one of the words",
    "word_share": "share of an answer's words that are among the words",
    "entropy": "entropy of the next token",
    "repetition": "share of an answer's runs of three tokens that came before",
    "surprise": "what the unsteered model thinks of an answer: nats per token",
}
"""`kl`, `word_probability` and `entropy` are means over the last token of the prompt and the
tokens of the unsteered answer, which every strength reads alike, so that they compare the same
places; the others are of each strength's own answer."""

_WORD = re.compile(r"\w+(?:['’]\w+)*")  # noqa: RUF001
_NGRAM = 3
_MOST_LOGITS = 2**26


@dataclass(frozen=True)
class DoseResponse:
    """What each strength of a steering does, by the measures of `MEASURES`."""

    measures: dict[str, Tensor]
    """`[P, K]` each."""

    generations: Generations
    """The answers, `answers[p][k]`."""

    words_left_out: list[str]
    """Words that are no single token of this vocabulary, and count only in `word_share`."""

    @property
    def strengths(self) -> list[tuple[float, ...]]:
        return self.generations.strengths

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per strength: means over the prompts."""
        return [
            {"strengths": list(dose)}
            | {name: values[:, k].mean().item() for name, values in self.measures.items()}
            for k, dose in enumerate(self.strengths)
        ]

    def table(self) -> str:
        """The means as aligned text."""
        names = list(self.measures)
        lines = ["  ".join(f"{name:>{max(len(name), 8)}}" for name in ["strength", *names])]
        for row in self.rows():
            dose = "/".join(f"{s:g}" for s in dict.fromkeys(row["strengths"]))
            values = [f"{row[name]:>{max(len(name), 8)}.4f}" for name in names]
            lines.append("  ".join([f"{dose:>8}", *values]))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows(),
            "per_prompt": {name: values.tolist() for name, values in self.measures.items()},
            "words_left_out": self.words_left_out,
            "generations": self.generations.to_dict(),
        }

    def plot(self, path: str | Path, title: str = "") -> None:
        """One panel per measure over the strengths of the first direction; thin lines: prompts."""
        from matplotlib.figure import Figure

        order = sorted(range(len(self.strengths)), key=lambda k: self.strengths[k])
        x = [self.strengths[k][0] for k in order]
        figure = Figure(figsize=(4 * len(self.measures), 3.2), layout="constrained")
        panels = figure.subplots(1, len(self.measures), squeeze=False)[0]
        for panel, (name, values) in zip(panels, self.measures.items(), strict=True):
            for of_prompt in values[:, order]:
                panel.plot(x, of_prompt.tolist(), color="0.8", linewidth=1)
            panel.plot(x, values[:, order].mean(0).tolist(), color="C0", marker="o")
            panel.set_title(name.replace("_", " "))
            panel.set_xlabel("strength")
        figure.suptitle(title)
        figure.savefig(Path(path), dpi=120)


def dose_response(
    model: Any,
    prompts: Prompt | Sequence[Prompt],
    steering: Steering | Sequence[Steering],
    strengths: Any = STRENGTHS,
    words: Sequence[str] = (),
    sampling: Sampling | None = None,
    *,
    tokenizer: Any = None,
    answering: Answering | None = None,
) -> DoseResponse:
    """Continue every prompt at every strength, and measure what the steering changed.

    The unsteered model is always among the strengths, as the first if it is not given. `words` are
    those whose probability is followed, as they stand and with a space before; without words
    those two measures are left out. Other arguments are those of `generate`. Raises ValueError if
    none of the words is a single token.
    """
    steering = [steering] if isinstance(steering, Steering) else list(steering)
    language_model, tokenizer = parts_of(model, tokenizer)
    doses = as_doses(strengths, len(steering))
    if not (doses == 0).all(1).any():
        doses = torch.cat([torch.zeros(1, len(steering)), doses])
    unsteered = int((doses == 0).all(1).nonzero()[0, 0])
    tokens, left_out = word_tokens(tokenizer, words)
    prompts = as_prompts(prompts)
    generations = generate(
        model,
        prompts,
        steering,
        doses,
        sampling,
        tokenizer=tokenizer,
        answering=answering,
    )
    measures = {name: torch.zeros(len(prompts), len(doses)) for name in MEASURES}
    silent = answering is None or not answering.show_progress
    for p in tqdm(range(len(prompts)), desc="Measuring", unit="prompt", disable=silent):
        answers = generations.answers[p]
        prompt = generations.prompt_tokens[p]
        here = next_tokens(
            language_model, prompt, answers[unsteered].tokens, steering, doses, tokens
        )
        for name, values in here.items():
            measures[name][p] = values
        measures["surprise"][p] = surprise(language_model, prompt, [a.tokens for a in answers])
        for k, answer in enumerate(answers):
            measures["repetition"][p, k] = repetition(answer.tokens)
            measures["word_share"][p, k] = word_share(answer, words)
    if not words:
        del measures["word_probability"], measures["word_share"]
    return DoseResponse(measures, generations, left_out)


def word_effects(
    model: Any,
    prompts: Sequence[Prompt],
    steering: Sequence[Steering],
    strengths: Sequence[float],
    words: Sequence[str],
    *,
    tokenizer: Any = None,
    chat: bool | None = None,
) -> Tensor:
    """Probability that the words come right after the prompts, by each of several steerings.

    `[F, K]` for F steerings used one at a time at K strengths, means over the prompts. Nothing is
    generated, so that many controls can be looked at.
    """
    language_model, tokenizer = parts_of(model, tokenizer)
    tokens, _ = word_tokens(tokenizer, words)
    encoded = [encode_prompt(tokenizer, prompt, chat) for prompt in as_prompts(prompts)]
    check_texts(language_model, tokenizer, encoded)
    doses = as_doses(strengths, 1)
    result = torch.zeros(len(steering), len(doses))
    for row, one in enumerate(steering):
        for ids in encoded:
            found = next_tokens(language_model, ids, [], [one], doses, tokens)
            result[row] += found["word_probability"] / len(encoded)
    return result


def word_tokens(tokenizer: Any, words: Sequence[str]) -> tuple[list[int], list[str]]:
    """The tokens that are one of the words, with or without a space before, and the words that
    have none. Raises ValueError if no word has one."""
    found: dict[str, list[int]] = {word: [] for word in words}
    for word in words:
        for text in (word, f" {word}"):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(ids) == 1 and tokenizer.decode(ids).strip() == word:
                found[word] += ids
    left_out = [word for word, ids in found.items() if not ids]
    if words and len(left_out) == len(found):
        raise ValueError(
            f"None of the words {list(words)} is a single token of this model's vocabulary, so "
            "their probability cannot be read off; give shorter or more common ones."
        )
    return sorted({id for ids in found.values() for id in ids}), left_out


@torch.inference_mode()
def next_tokens(
    model: Any,
    prompt: Sequence[int],
    answer: Sequence[int],
    steering: Sequence[Steering],
    doses: Tensor,
    tokens: Sequence[int] = (),
) -> dict[str, Tensor]:
    """`kl`, `word_probability` and `entropy` `[K]` at doses `[K, F]`.

    All read the same prompt and answer; means over the answer's places and the one behind it.
    """
    ids = torch.tensor([[*prompt, *answer]], device=model.device)
    places = len(answer) + 1
    mask = torch.ones(1, len(prompt), dtype=torch.long)
    reference = log_probabilities(model, ids, places)[0]
    at_once = max(_MOST_LOGITS // reference.numel(), 1)
    parts: dict[str, list[Tensor]] = {"kl": [], "word_probability": [], "entropy": []}
    for some in doses.split(at_once):
        with steered(model, steering, some, mask):
            found = log_probabilities(model, ids.expand(len(some), -1), places)
        p = found.exp()
        parts["kl"].append((p * (found - reference)).sum(-1).mean(-1))
        parts["entropy"].append(-(p * found.clamp_min(-1e30)).sum(-1).mean(-1))
        parts["word_probability"].append(p[..., list(tokens)].sum(-1).mean(-1))
    return {name: torch.cat(values).cpu() for name, values in parts.items()}


@torch.inference_mode()
def surprise(model: Any, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> Tensor:
    """Mean negative log-likelihood per token of answers by the model as it is, `[K]`; 0 for an
    empty answer."""
    result = torch.zeros(len(answers))
    longest = max(map(len, answers), default=0)
    vocabulary = model.config.get_text_config().vocab_size
    at_once = max(_MOST_LOGITS // (vocabulary * (longest + 1)), 1)
    for start in range(0, len(answers), at_once):
        some = answers[start : start + at_once]
        width = max(map(len, some))
        # Padding on the right: what comes later is not seen from before.
        ids = torch.tensor([[*prompt, *a, *[0] * (width - len(a))] for a in some])
        found = log_probabilities(model, ids.to(model.device), width + 1)
        for row, answer in enumerate(some):
            if answer:
                chosen = found[row, range(len(answer)), list(answer)]
                result[start + row] = -chosen.mean().cpu()
    return result


def repetition(tokens: Sequence[int]) -> float:
    """Share of the runs of three tokens that came before; 0 for fewer than three tokens."""
    runs = [tuple(tokens[i : i + _NGRAM]) for i in range(len(tokens) - _NGRAM + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def word_share(answer: Generation, words: Sequence[str]) -> float:
    """Share of an answer's words that are among `words`, whatever their case."""
    wanted = {word.casefold() for word in words}
    found = [word.casefold() for word in _WORD.findall(answer.text)]
    return sum(word in wanted for word in found) / len(found) if found else 0.0


def log_probabilities(model: Any, ids: Tensor, places: int = 1) -> Tensor:
    """Of the token after each of the last `places` tokens, `[rows, places, V]` in float32."""
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=places).logits
    return logits[:, -places:].float().log_softmax(-1)
