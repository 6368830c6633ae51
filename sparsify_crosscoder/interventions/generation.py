"""Steered generation: all prompts at all strengths as one batch.

P prompts, K strengths, B = P * K rows, F directions at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from ..harvest.batched_generation import (
    end_tokens,
    generation_config,
    left_padded,
    pad_token,
    until_end,
)
from ..harvest.limits import check_tokens, context_length
from ..hashing import hash_text
from .prompts import Prompt, encode_prompt
from .steering import Push, SteeredBatch, Steering, steered, whole_names

STRENGTHS = tuple(range(11))  # B.5
PROMPTS = (  # B.5
    "What's on your mind?",
    "What do you want to talk about?",
    "Tell me something",
)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int = 200
    temperature: float | None = None
    """None takes the likeliest token; B.5 samples at 0.7."""

    top_p: float = 1.0
    """Least probability that the tokens to sample from have together; B.5 has 0.9."""

    seed: int = 0
    """The noise of sampling depends on this, the prompt and the place in the answer; it is the
    same at all strengths, so that answers differ by what steering does."""

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}.")
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError(
                f"temperature must be positive, got {self.temperature}; leave it out to take the "
                "likeliest token."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}.")


@dataclass(frozen=True)
class Answering:
    """How prompts are read, and how many answers are written at a time."""

    chat: bool | None = None
    """Whether a text is a user's message; None: where the tokenizer has a chat template."""

    batch_size: int | None = None
    """Most rows of a batch, where memory is short; None: all."""

    show_progress: bool = False


@dataclass(frozen=True)
class Generation:
    """One answer."""

    prompt: Prompt
    strengths: tuple[float, ...]
    """One per direction."""

    text: str
    tokens: list[int]
    """Tokens of the answer, without the one that ends it."""

    ended: bool
    """Whether the model ended the answer itself."""


@dataclass(frozen=True)
class Generations:
    """Answers to P prompts at K strengths."""

    answers: list[list[Generation]]
    """`answers[p][k]`."""

    strengths: list[tuple[float, ...]]
    prompt_tokens: list[list[int]]
    """Each prompt as the model read it."""

    sampling: Sampling

    def texts(self, prompt: int = 0) -> list[str]:
        """The answers to one prompt, by strength."""
        return [answer.text for answer in self.answers[prompt]]

    def to_dict(self) -> dict[str, Any]:
        return {
            "strengths": [list(s) for s in self.strengths],
            "sampling": asdict(self.sampling),
            "answers": [[asdict(answer) for answer in row] for row in self.answers],
        }


def generate(
    model: Any,
    prompts: Prompt | Sequence[Prompt],
    steering: Steering | Sequence[Steering],
    strengths: Sequence[float] | Sequence[Sequence[float]] | Tensor = STRENGTHS,
    sampling: Sampling | None = None,
    *,
    tokenizer: Any = None,
    answering: Answering | None = None,
) -> Generations:
    """Continue every prompt at every strength, all in one batch.

    `model` is an nnsight `TransformersModel`, which is steered by a trace, or a causal language
    model of `transformers` with its `tokenizer`, which is steered by hooks; answers are the same.
    `strengths` is `[K]`, for all directions alike, or `[K, F]`. Prompts are texts, which become a
    user's message where the tokenizer has a chat template (unless `answering` says otherwise), or
    conversations. Raises ValueError for empty prompts and for directions that do not fit the model.
    """
    sampling, answering = sampling or Sampling(), answering or Answering()
    steering = [steering] if isinstance(steering, Steering) else list(steering)
    language_model, tokenizer = parts_of(model, tokenizer)
    prompts = as_prompts(prompts)
    doses = as_doses(strengths, len(steering))
    encoded = [encode_prompt(tokenizer, prompt, answering.chat) for prompt in prompts]
    _check_context(language_model, tokenizer, encoded, sampling)
    keys = [_key(sampling.seed, ids, encoded[:p].count(ids)) for p, ids in enumerate(encoded)]
    rows = [(p, k) for p in range(len(prompts)) for k in range(len(doses))]
    size = len(rows) if answering.batch_size is None else answering.batch_size
    if size < 1:
        raise ValueError(f"batch_size counts rows and must be at least 1, got {size}.")
    ends = end_tokens(language_model, tokenizer)
    pad = pad_token(tokenizer, ends)

    outputs: list[list[int]] = []
    with tqdm(
        total=-(-len(rows) // size) * sampling.max_new_tokens,
        unit="token",
        desc=f"Generating {len(rows)} answers",
        disable=not answering.show_progress,
    ) as progress:
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            ids, mask = left_padded([encoded[p] for p, _ in some], pad)
            batch = SteeredBatch(steering, doses[[k for _, k in some]], mask)
            settings = {
                "generation_config": generation_config(sampling.max_new_tokens, ends, pad),
                "logits_processor": _processors(sampling, [keys[p] for p, _ in some], progress),
            }
            inputs = {"input_ids": ids, "attention_mask": mask}
            inputs = {name: value.to(language_model.device) for name, value in inputs.items()}
            run = _by_hooks if model is language_model else _by_trace
            output = run(model, language_model, inputs, batch, settings)
            outputs += output[:, ids.shape[1] :].tolist()

    dose_list = [tuple(dose) for dose in doses.tolist()]
    answers: list[list[Generation]] = [[] for _ in prompts]
    for (p, k), tokens in zip(rows, outputs, strict=True):
        answer, ended = until_end(tokens, ends)
        text = tokenizer.decode(answer, skip_special_tokens=True)
        answers[p].append(Generation(prompts[p], dose_list[k], text, answer, ended))
    return Generations(answers, dose_list, encoded, sampling)


def as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several as a list; raises ValueError if there is none."""
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], dict)):
        return [prompts]  # type: ignore[list-item]
    if not prompts:
        raise ValueError("There are no prompts to continue; give one at least.")
    return list(prompts)  # type: ignore[arg-type]


def as_doses(strengths: Any, num_directions: int) -> Tensor:
    """Strengths as `[K, F]`; raises ValueError where they are none or do not fit."""
    doses = torch.as_tensor(strengths, dtype=torch.float32)
    if doses.ndim == 1:
        doses = doses[:, None].expand(-1, num_directions)
    if doses.ndim != 2 or not len(doses) or doses.shape[1] != num_directions:
        raise ValueError(
            f"{num_directions} directions need strengths [K] or [K, {num_directions}], got shape "
            f"{list(doses.shape)}."
        )
    if not doses.isfinite().all():
        raise ValueError("Strengths must be finite.")
    return doses


def parts_of(model: Any, tokenizer: Any = None) -> tuple[PreTrainedModel, Any]:
    """The `transformers` model and the tokenizer of an nnsight model or of a model itself.

    Raises ValueError if there is no tokenizer or the model does not generate text.
    """
    if isinstance(model, PreTrainedModel):
        inner = model
    elif hasattr(model, "_module") and hasattr(model, "generate"):
        if not getattr(model, "dispatched", True):
            model.dispatch()
        inner, tokenizer = model._module, tokenizer or model.tokenizer
    else:
        raise ValueError(
            f"Cannot steer a {type(model).__name__}: give a causal language model of transformers "
            "or nnsight's TransformersModel."
        )
    if not isinstance(inner, PreTrainedModel) or not inner.can_generate():
        raise ValueError(
            f"{type(inner).__name__} does not generate text; load it with AutoModelForCausalLM."
        )
    if tokenizer is None:
        raise ValueError("Give the model's tokenizer.")
    return inner, tokenizer


def _by_hooks(
    model: Any, language_model: Any, inputs: dict[str, Any], batch: SteeredBatch, settings: Any
) -> Tensor:
    with torch.inference_mode(), steered(model, batch.steering, batch.strengths, batch.mask):
        return language_model.generate(**inputs, **settings)


def _by_trace(
    model: Any, language_model: Any, inputs: dict[str, Any], batch: SteeredBatch, settings: Any
) -> Tensor:
    from nnsight import save
    from transformers import BatchEncoding

    pushes = batch.pushes(language_model)
    names = whole_names(language_model, list(pushes))
    places: list[tuple[Any, Push]] = [
        (model.get(name), push) for name, push in zip(names, pushes.values(), strict=True)
    ]
    # nnsight reads a bare dict's input_ids alone, and would lose the mask.
    encoding = BatchEncoding(inputs)
    with warnings.catch_warnings(), torch.no_grad():
        # nnsight says of every loop over all steps that it ended with the last one.
        warnings.filterwarnings("ignore", message=".*was never reached: the loop asked")
        with model.generate(**settings) as tracer:
            with tracer.invoke(encoding):
                for _ in tracer.iter[:]:
                    for place, push in places:
                        place.output = push(place.output)
            with tracer.invoke():
                output = save(tracer.result)
    return output


def _processors(sampling: Sampling, keys: list[int], progress: Any) -> LogitsProcessorList:
    processors: list[LogitsProcessor] = [_Progress(progress)]
    if sampling.temperature is not None:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_p < 1:
            processors.append(TopPLogitsWarper(sampling.top_p))
        processors.append(_SharedNoise(keys))
    return LogitsProcessorList(processors)


class _Progress(LogitsProcessor):
    def __init__(self, progress: Any):
        self.progress = progress

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.progress.update()
        return scores


class _SharedNoise(LogitsProcessor):
    """Gumbel noise, with which the likeliest token is a sample; equal for rows with equal keys."""

    def __init__(self, keys: list[int]):
        unique = sorted(set(keys))
        self.rows = torch.tensor([unique.index(key) for key in keys])
        self.generators = [torch.Generator().manual_seed(key) for key in unique]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        width = scores.shape[-1]
        noise = torch.stack(
            [-torch.empty(width).exponential_(generator=g).log_() for g in self.generators]
        )
        return scores.float() + noise.to(scores.device)[self.rows.to(scores.device)]


def _key(seed: int, ids: Sequence[int], repetition: int) -> int:
    """A seed for the noise of a prompt; equal prompts differ by which of them it is."""
    return int(hash_text(repr((seed, list(ids), repetition)))[:8], 16)


def _check_context(
    model: Any, tokenizer: Any, encoded: Sequence[Sequence[int]], sampling: Sampling
) -> None:
    context = context_length(model)
    longest = max(map(len, encoded))
    if context is not None and longest + sampling.max_new_tokens > context:
        raise ValueError(
            f"A prompt of {longest} tokens and {sampling.max_new_tokens} new ones do not fit into "
            f"the model's context of {context}; shorten the prompt or lower max_new_tokens."
        )
    check_tokens(model.name_or_path, model, tokenizer, encoded)
