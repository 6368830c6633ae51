"""Requests, tokens and dollars of an audit's judge, from prompts as they are really asked.

Prompts are those of this package, over ordinary English of the lengths that the audit has; tokens
are counted by four characters each, as the clients' own estimates do. The prompt cache, reminders
after answers that cannot be read, and refusals are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from statistics import fmean
from typing import Any, NamedTuple

import torch
from gpu_costs import features_scored, rubric_answers
from public_facts import Diff

from delphi_adapters.clients.ledger import Ledger, load_prices
from delphi_adapters.clients.records import USUAL_ANSWER, Usage
from delphi_adapters.clients.requests import build_request
from delphi_adapters.delphi import compat  # noqa: F401
from delphi_adapters.explaining import categories
from delphi_adapters.explaining.autointerp import JudgingConfig
from delphi_adapters.explaining.flagging import FlaggingExplainer
from delphi_adapters.explaining.interpretability import InterpretabilityFilter
from delphi_adapters.judging.exclusivity import SteeredAnswers, requests
from delphi_adapters.judging.rubrics import Rubric
from sparsify_crosscoder.interventions.generation import PROMPTS

# isort: split
from delphi.clients.client import Client, Response
from delphi.latents import ActivatingExample, LatentRecord, NonActivatingExample
from delphi.latents.latents import Latent

PASSAGE = (
    "The ferry left the harbour a little before eight, when the fog had lifted far enough for the "
    "pilot to see both lights. On deck a group of teachers compared maps and argued about the "
    "shortest way to the museum, while the children counted gulls and lost count, and began again. "
    "Nobody had brought an umbrella, although the forecast had promised showers from the west by "
    "noon. Below, in the warm smell of coffee and diesel, an engineer explained to everyone who "
    "would listen why the second engine was louder than the first, and what a third would cost. "
)
"""Ordinary prose, of which only the length matters."""

ACTIVE_TOKENS = 4
"""Tokens of an example on which a latent is taken to be active."""

DETECTION_ANSWER = 12  # tokens of a list of five numbers
CATEGORY_ANSWER = 15  # of one line
RATING_ANSWER = 80  # of one or two sentences and a score


class Stage(NamedTuple):
    """Requests of one kind."""

    name: str
    requests: int
    prompt_tokens: float
    """Of one request, on average."""

    answer_tokens: int


class Sizes(NamedTuple):
    """Requests for each latent or direction, and tokens of each request."""

    explain: tuple[int, float]
    detect: tuple[int, float]
    category: tuple[int, float]
    clear: tuple[int, float]
    similar: tuple[int, float]
    rubrics: dict[str, tuple[int, float]]
    """For all latents that they are asked about."""


Prompt = Sequence[Mapping[str, str]]


def words(count: int, skip: int = 0) -> list[str]:
    """So many words of the passage with the space before each, round and round."""
    found = re.findall(r"\s?\w+|[^\w\s]", PASSAGE)
    return list(islice(cycle(found), skip, skip + count))


def prompt_tokens(prompts: Sequence[Prompt]) -> float:
    """Tokens of a prompt on average, by four characters each."""
    built = [build_request(prompt, model="", max_tokens=1) for prompt in prompts]
    return fmean(one.estimated_tokens for one in built)


def autointerp_prompts(cfg: JudgingConfig) -> tuple[list[Prompt], list[Prompt]]:
    """What is asked about one latent: for its explanation and flag, and for its detection test."""
    told = "".join(words(30)).strip()
    explained = f"[EXPLANATION]: {told}\n[HARMFUL]: no\n[HARMFUL_REASON]: {told}"
    explainer, judge = _Listener(explained), _Listener(str([1] * cfg.n_examples_shown))
    test = InterpretabilityFilter(judge, n_examples_shown=cfg.n_examples_shown)
    record = _record(cfg)

    async def ask() -> None:
        record.explanation = (await FlaggingExplainer(explainer)(record)).explanation
        await test(record)

    asyncio.run(ask())
    return explainer.heard, judge.heard


def category_prompt() -> Prompt:
    """What is asked about one flagged latent."""
    judge = _Listener(f"[{categories.CATEGORY}]: {categories.CATEGORIES[0]}")
    told = "".join(words(30)), "".join(words(40))
    asyncio.run(categories.CategoryJudge(judge)("layers.0_latent0", *told))
    return judge.heard[0]


def exclusivity_prompts(audit: argparse.Namespace) -> tuple[list[Prompt], list[Prompt]]:
    """What is asked about one direction: whether steering is clear, and whether it is similar."""
    prompts: list[str] = list(audit.prompts or PROMPTS)
    answers = [
        ["".join(words(audit.max_new_tokens, skip=7 * i)) for i, _ in enumerate(audit.strengths)]
        for _ in prompts
    ]
    steered = SteeredAnswers(prompts, list(audit.strengths), answers, answers)
    asked = requests(steered, blinded=not audit.no_blinded)
    each = len(asked) // len(prompts)
    similar = [prompt for i, prompt in enumerate(asked) if i % each]
    return list(asked[::each]), list(similar)


def rubric_prompts(rubric: Rubric) -> list[Prompt]:
    """What is asked about an answer to each prompt that is as long as it may be."""
    answer = "".join(words(rubric.sampling.max_new_tokens))
    return [rubric.messages(prompt, answer) for prompt in rubric.prompts]


def measure(audit: argparse.Namespace) -> Sizes:
    """Sizes of what is asked in an audit."""
    explain, detect = autointerp_prompts(JudgingConfig())
    clear, similar = exclusivity_prompts(audit)
    loaded = {name: Rubric.load(name) for name in audit.rubrics}

    def size(prompts: Sequence[Prompt]) -> tuple[int, float]:
        return len(prompts), prompt_tokens(prompts)

    return Sizes(
        explain=size(explain),
        detect=size(detect),
        category=size([category_prompt()]),
        clear=size(clear),
        similar=size(similar),
        rubrics={
            name: (
                audit.rubric_features * rubric_answers(rubric),
                prompt_tokens(rubric_prompts(rubric)),
            )
            for name, rubric in loaded.items()
        },
    )


def stages(
    sizes: Sizes,
    audit: argparse.Namespace,
    diff: Diff,
    num_latents: int,
    *,
    latents: str,
    interpretable_share: float = 1.0,
) -> list[Stage]:
    """What the judge is asked in an audit of these `latents`, "all" or "exclusive".

    How many latents are alive and flagged is what the paper found; with all latents asked about,
    shared ones are taken to be flagged as often as exclusive ones. `interpretable_share` of the
    steered directions have their similarity judged.
    """
    alive, flagged = diff.exclusive_alive, diff.exclusive_flagged
    if latents == "all":
        alive = round(num_latents * (1 - diff.dead_fraction))
        flagged = round(alive * flagged / diff.exclusive_alive)
    elif latents != "exclusive":
        raise ValueError(f"What latents: {latents} comes to is not known before the run.")
    limit = audit.explain_limit
    if limit is not None and limit < alive:
        alive, flagged = limit, round(flagged * limit / alive)
    scored = sum(features_scored(audit, diff).values())
    compared = round(scored * interpretable_share)
    counted = (
        ("explain and flag", alive, sizes.explain, USUAL_ANSWER),
        ("detection test", alive, sizes.detect, DETECTION_ANSWER),
        ("categories", flagged, sizes.category, CATEGORY_ANSWER),
        ("is steering clear", scored, sizes.clear, RATING_ANSWER),
        ("is it similar, plain and blinded", compared, sizes.similar, RATING_ANSWER),
    )
    rated = ((f"rubric {name}", 1, size, RATING_ANSWER) for name, size in sizes.rubrics.items())
    return [
        Stage(name, count * each, tokens, answer)
        for name, count, (each, tokens), answer in (*counted, *rated)
    ]


def dollars(stage: Stage, judge: str, batch: bool = False) -> float:
    """What a stage costs with a judge. Raises ValueError for one without a known price."""
    price = Ledger().price(judge)
    if price is None:
        raise ValueError(f"The price of {judge!r} is not known; known: {', '.join(judges())}.")
    usage = Usage(input=round(stage.prompt_tokens), output=stage.answer_tokens)
    return stage.requests * price.cost(usage, batch)


def judges() -> list[str]:
    """Judges with a known price."""
    return list(load_prices(None))


class _Listener(Client):
    """Notes what it is asked and always gives the same answer."""

    def __init__(self, answer: str):
        super().__init__("none")
        self.answer = answer
        self.heard: list[Prompt] = []

    async def generate(self, prompt: Any, **kwargs: Any) -> Response:
        self.heard.append(prompt)
        return Response(text=self.answer)


def _record(cfg: JudgingConfig) -> LatentRecord:
    """A latent with examples of ordinary English."""
    size = cfg.example_ctx_len
    activations = torch.zeros(size)
    activations[-ACTIVE_TOKENS:] = torch.arange(1.0, ACTIVE_TOKENS + 1)
    shown, silent = [], []
    for i in range(max(cfg.num_examples, cfg.n_top)):
        text = words(size, skip=size * i)
        shown.append(ActivatingExample(torch.arange(size), activations, activations, text))
    for i in range(cfg.n_random):
        text = words(size, skip=size * i + size // 2)
        silent.append(NonActivatingExample(torch.arange(size), torch.zeros(size), text, -1.0))
    return LatentRecord(
        Latent("layers.0", 0), examples=shown, train=shown[: cfg.num_examples], not_active=silent
    )
