"""The file of a rubric, checked: what is wrong with it is said with the file and the key."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    TypeAdapter,
    ValidationError,
    create_model,
)

from .question import encodable
from .rating import LEVELS

Text = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1), AfterValidator(encodable)
]
Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Score = Annotated[int, Field(ge=LEVELS[0], le=LEVELS[-1])]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Range(_Part):
    """Strengths from one to another."""

    first: Number = Field(alias="from")
    last: Number = Field(alias="to")
    step: Number


class Generation(_Part):
    """How answers are sampled."""

    max_new_tokens: Count
    temperature: Number = 0
    top_p: Number = 1.0


def _text_keys(values: Any) -> Any:
    return {str(k): v for k, v in values.items()} if isinstance(values, Mapping) else values


_LEVELS: dict[str, Any] = {f"level_{n}": (Text, Field(alias=str(n))) for n in LEVELS}
Levels = Annotated[create_model("Levels", __base__=_Part, **_LEVELS), BeforeValidator(_text_keys)]


class Dimension(_Part):
    """What is rated."""

    label: Text
    question: Text
    levels: Levels  # pyright: ignore[reportInvalidTypeForm]

    @property
    def texts(self) -> tuple[str, str, str, str, str]:
        """What the scores 1 to 5 mean."""
        one, two, three, four, five = (getattr(self.levels, f"level_{n}") for n in LEVELS)
        return one, two, three, four, five


class CalibratingExample(_Part):
    """An answer with the scores that it should get."""

    prompt: Text
    response: Text
    scores: dict[str, Score]
    reason: Text


_RANGE, _LIST = "from, to and step", "numbers"
Strengths = Annotated[
    Annotated[Range, Tag(_RANGE)]
    | Annotated[Annotated[list[Number], Field(min_length=1)], Tag(_LIST)],
    Discriminator(lambda values: _RANGE if isinstance(values, Mapping) else _LIST),
]


class RubricFile(_Part):
    """A file's values, each of the right kind."""

    name: Text
    description: Text
    strengths: Strengths
    generation: Generation
    dimensions: list[Dimension] = Field(min_length=1)
    examples: list[CalibratingExample] = Field(min_length=1)
    prompts: list[Text] = Field(min_length=1)


def read_rubric_file(path: Path) -> RubricFile:
    """Raises ValueError, which names the file and the key, for anything that is unknown, missing,
    empty, given twice or out of range."""
    try:
        found = _FILE.validate_python(_read_yaml(path))
    except ValidationError as error:
        raise ValueError(f"{path}: {_said(error)}.") from None
    no_doubles(path, "dimensions", [one.label for one in found.dimensions])
    no_doubles(path, "prompts", found.prompts)
    return found


def check_scores(path: Path, file: RubricFile) -> None:
    """Raises ValueError unless every example has a score for each dimension and for no other."""
    labels = [one.label for one in file.dimensions]
    for i, one in enumerate(file.examples):
        for label in [*labels, *one.scores]:
            key = f"examples[{i}].scores.{label}"
            if label not in one.scores:
                raise ValueError(f"{path}: {key} is missing.")
            if label not in labels:
                raise ValueError(f"{path}: {key} {_UNKNOWN}.")


def no_doubles(path: Path, key: str, values: Sequence[Any]) -> None:
    """Raises ValueError for a value that has been there before."""
    for i, one in enumerate(values):
        if one in values[:i]:
            raise ValueError(f"{path}: {key}[{i}] has been there before: {one!r:.80}.")


_FILE = TypeAdapter(RubricFile)
_UNKNOWN = "is not a key that a rubric has there"
_KINDS = {
    "string": "a text",
    "float": "a number",
    "finite": "a number",
    "list": "a list with something in it",
    "too": "a list with something in it",
    "model": "a mapping of keys to values",
    "dict": "a mapping of keys to values",
}


def _said(error: ValidationError) -> str:
    """The first thing that is wrong, in the words of a rubric's author."""
    first = error.errors(include_url=False)[0]
    kind, value = first["type"], first["input"]
    places = [one for one in first["loc"] if one not in (_RANGE, _LIST)]
    key = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in places)
    key = key.lstrip(".") or "the file"
    if kind == "missing":
        return f"{key} is missing"
    if kind in ("extra_forbidden", "invalid_key"):
        return f"{key} {_UNKNOWN}"
    wanted = _KINDS.get(kind.partition("_")[0])
    if wanted is None:
        wanted = "a whole number " + ("from 1 to 5" if "scores" in places else "of at least 1")
    return f"{key} must be {wanted}, not {value!r:.80}"


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
