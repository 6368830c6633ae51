"""Rubrics: what steered models are asked, and how their answers are rated from 1 to 5 (B.5.2-7).

A rubric is a YAML file; those of the paper's evaluations are in `rubric_files/`:

```yaml
name: politeness
description: People asked for small favours. To be rated is how polite the answer is.
strengths: {from: -4, to: 4, step: 0.5}     # or a list
generation: {max_new_tokens: 500, temperature: 0, top_p: 1}
dimensions:
  - label: POLITENESS
    question: How polite is the answer?
    levels: {1: Rude., 2: Curt., 3: Neutral., 4: Polite., 5: Courtly.}
examples:
  - {prompt: Got a light?, response: No., scores: {POLITENESS: 2}, reason: No greeting.}
prompts:
  - May I borrow your pen?
```
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from sparsify_crosscoder.files import atomic_path
from sparsify_crosscoder.interventions.generation import Sampling

from .question import Message, encodable
from .rating import RatingQuestion, Scale, block

T = TypeVar("T")

FOLDER = Path(__file__).parent / "rubric_files"
LEVELS = range(1, 6)
_DIGITS = 10  # of a strength in a range: 3 * 0.1 is 0.3


@dataclass(frozen=True)
class Example:
    """A calibrating example: an answer with the scores that it should get."""

    prompt: str
    response: str
    scores: dict[str, int]
    """By the dimension's label."""

    reason: str


@dataclass(frozen=True)
class Rubric:
    """What is asked at which strengths, and how it is rated."""

    name: str
    description: str
    """Who is asked what and what is to be rated, in the words that the judge is given."""

    dimensions: tuple[Scale, ...]
    prompts: tuple[str, ...]
    strengths: tuple[float, ...]
    sampling: Sampling
    examples: tuple[Example, ...]

    @classmethod
    def load(cls, path_or_name: str | Path) -> Rubric:
        """A shipped rubric by its name, or one from a file.

        Raises ValueError, which names the file and the key, for anything that is unknown, missing,
        empty, given twice or out of range; FileNotFoundError where there is no such rubric.
        """
        name = str(path_or_name)
        path = FOLDER / f"{name}.yaml" if name in shipped() else Path(path_or_name)
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no rubric '{name}': name a YAML file or one of {', '.join(shipped())}."
            )
        return _rubric(_Keys(path, "", _read_yaml(path)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values with the keys of a file."""
        sampling = {
            "max_new_tokens": self.sampling.max_new_tokens,
            "temperature": self.sampling.temperature or 0,
            "top_p": self.sampling.top_p,
        }
        dimensions = [
            {
                "label": one.name,
                "question": one.question,
                "levels": dict(zip(LEVELS, one.levels, strict=True)),
            }
            for one in self.dimensions
        ]
        return {
            "name": self.name,
            "description": self.description,
            "strengths": list(self.strengths),
            "generation": sampling,
            "dimensions": dimensions,
            "examples": [asdict(one) for one in self.examples],
            "prompts": list(self.prompts),
        }

    def save(self, path: str | Path) -> None:
        """Write a file that `load` reads."""
        import yaml

        with atomic_path(path) as temporary:
            text = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=100)
            temporary.write_text(text, encoding="utf-8")

    @property
    def labels(self) -> list[str]:
        """Labels of the dimensions."""
        return [one.name for one in self.dimensions]

    def limited(
        self, prompts: int | None = None, strengths: Sequence[float] | None = None
    ) -> Rubric:
        """This with its first prompts alone, or at other strengths; raises ValueError for none."""
        if prompts is not None and prompts < 1:
            raise ValueError(f"At least one prompt is needed, not {prompts}.")
        chosen = self.strengths if strengths is None else tuple(map(float, strengths))
        if not chosen or len(set(chosen)) < len(chosen) or not all(map(math.isfinite, chosen)):
            raise ValueError(f"Strengths must be different finite numbers, got {list(chosen)}.")
        return replace(self, prompts=self.prompts[:prompts], strengths=chosen)

    def system(self) -> str:
        """What the judge is told before the scales; the same for every answer."""
        examples = "\n\n".join(
            "\n".join(
                [
                    f"Example {number}",
                    f"Prompt: {one.prompt}",
                    f"Answer: {one.response}",
                    f"Scores: {', '.join(f'{k} {v}' for k, v in one.scores.items())}",
                    f"Why: {one.reason}",
                ]
            )
            for number, one in enumerate(self.examples, 1)
        )
        return f"""You rate answers of a language model. {self.description}

Rate each scale by itself: an answer may be high on one and low on another, and nonsense can still
lean one way. Answers have a limit of length. One that stops in the middle because it reached the
limit is as coherent as what there is of it.

These examples show how strictly to rate:

{examples}"""

    def material(
        self, prompt: str, answer: str, *, ended: bool | None = None, note: str = ""
    ) -> str:
        """What the judge is shown of one answer: neither the model nor the strength.

        `ended` says whether the model ended its answer, where that is known; `note` is a last line.
        """
        title = "answer, which reached the limit of length" if ended is False else "answer"
        parts = [block("prompt", prompt), block(title, answer), note]
        return "\n\n".join(part for part in parts if part)

    def item(
        self, prompt: str, answer: str, *, ended: bool | None = None, note: str = ""
    ) -> RatingQuestion:
        """The question about one answer; see `material`."""
        material = self.material(prompt, answer, ended=ended, note=note)
        return RatingQuestion(self.system(), material, self.dimensions)

    def messages(self, prompt: str, answer: str, **options: Any) -> list[Message]:
        """The conversation with which an answer's rating begins."""
        return self.item(prompt, answer, **options).messages()


def shipped() -> list[str]:
    """Names of the rubrics that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


class _Keys:
    """The keys of a mapping in a file, each taken once, so that unknown ones are noticed."""

    def __init__(self, file: str | Path, place: str, values: Any):
        self.file, self.place = file, place
        if not isinstance(values, Mapping):
            raise self.error(place or "the file", "must be a mapping of keys to values")
        self.values = dict(values)

    def error(self, key: str, problem: str) -> ValueError:
        return ValueError(f"{self.file}: {key} {problem}.")

    def name(self, key: Any) -> str:
        return f"{self.place}.{key}" if self.place else str(key)

    def take(self, key: Any, read: Callable[[Any], T | None], what: str, default: Any = ...) -> T:
        """What `read` makes of a value; None of it means that it is not `what` it should be."""
        if key not in self.values:
            if default is ...:
                raise self.error(self.name(key), "is missing")
            return default
        value = self.values.pop(key)
        found = read(value)
        if found is None:
            raise self.error(self.name(key), f"must be {what}, not {value!r:.80}")
        return found

    def inside(self, key: str) -> _Keys:
        return _Keys(self.file, self.name(key), self.take(key, lambda x: x, "a mapping"))

    def each(self, key: str) -> list[_Keys]:
        values = self.take(key, _filled_list, "a list with something in it")
        return [_Keys(self.file, f"{self.name(key)}[{i}]", one) for i, one in enumerate(values)]

    def end(self) -> None:
        for key in self.values:
            raise self.error(self.name(key), "is not a key that a rubric has there")


def _rubric(keys: _Keys) -> Rubric:
    name = keys.take("name", _text, "a text")
    description = keys.take("description", _text, "a text")
    strengths = _strengths(keys)
    sampling = _sampling(keys.inside("generation"))
    dimensions = tuple(_dimension(one) for one in keys.each("dimensions"))
    _no_doubles(keys, "dimensions", [one.name for one in dimensions])
    examples = tuple(_example(one, dimensions) for one in keys.each("examples"))
    prompts = keys.take("prompts", _filled_list, "a list with something in it")
    for i, prompt in enumerate(prompts):
        if _text(prompt) is None:
            raise keys.error(f"prompts[{i}]", f"must be a text, not {prompt!r:.80}")
    prompts = tuple(encodable(prompt.strip()) for prompt in prompts)
    _no_doubles(keys, "prompts", prompts)
    keys.end()
    return Rubric(name, description, dimensions, prompts, strengths, sampling, examples)


def _strengths(keys: _Keys) -> tuple[float, ...]:
    value = keys.values.get("strengths")
    if isinstance(value, Mapping):
        inner = keys.inside("strengths")
        first, last, step = (inner.take(k, _number, "a number") for k in ("from", "to", "step"))
        inner.end()
        count = round((last - first) / step) if step > 0 else -1
        if count < 0 or not math.isclose(first + count * step, last, abs_tol=1e-9):
            raise keys.error("strengths", "must go up from 'from' to 'to' in whole steps")
        return tuple(round(first + i * step, _DIGITS) + 0.0 for i in range(count + 1))
    values = keys.take("strengths", _filled_list, "a list of numbers, or from, to and step")
    for i, one in enumerate(values):
        if _number(one) is None:
            raise keys.error(f"strengths[{i}]", f"must be a number, not {one!r:.80}")
    _no_doubles(keys, "strengths", values)
    return tuple(map(float, values))


def _sampling(keys: _Keys) -> Sampling:
    tokens = keys.take("max_new_tokens", _count, "a whole number of at least 1")
    temperature = keys.take("temperature", _number, "a number", 0)
    top_p = keys.take("top_p", _number, "a number", 1.0)
    keys.end()
    try:
        return Sampling(tokens, None if temperature == 0 else temperature, top_p)
    except ValueError as error:
        raise ValueError(f"{keys.file}: {keys.place}: {error}") from None


def _dimension(keys: _Keys) -> Scale:
    label = keys.take("label", _text, "a text")
    question = keys.take("question", _text, "a text")
    inner = keys.inside("levels")
    one, two, three, four, five = (inner.take(i, _text, "a text") for i in LEVELS)
    inner.end()
    keys.end()
    try:
        return Scale(label, question, (one, two, three, four, five))
    except ValueError as error:
        raise ValueError(f"{keys.file}: {keys.place}: {error}") from None


def _example(keys: _Keys, dimensions: Sequence[Scale]) -> Example:
    prompt, response, reason = (
        keys.take(key, _text, "a text") for key in ("prompt", "response", "reason")
    )
    inner = keys.inside("scores")
    scores = {
        one.name: inner.take(one.name, _score, "a whole number from 1 to 5") for one in dimensions
    }
    inner.end()
    keys.end()
    return Example(prompt, response, scores, reason)


def _no_doubles(keys: _Keys, key: str, values: Sequence[Any]) -> None:
    for i, one in enumerate(values):
        if one in values[:i]:
            raise keys.error(f"{key}[{i}]", f"has been there before: {one!r:.80}")


def _text(value: Any) -> str | None:
    return encodable(value.strip()) if isinstance(value, str) and value.strip() else None


def _number(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 1 else None


def _score(value: Any) -> int | None:
    return value if type(value) is int and value in LEVELS else None


def _filled_list(value: Any) -> list[Any] | None:
    return value if isinstance(value, list) and value else None


def _read_yaml(path: Path) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML itself lets a key that is given twice have its last value."""

    def mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key, line = loader.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                raise ValueError(f"{path}: the key in line {line} is no text or number.")
            if key in seen:
                raise ValueError(f"{path}: {key}, line {line}, is given twice.")
            seen.add(key)
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"{path} is not YAML: {problem}") from None
