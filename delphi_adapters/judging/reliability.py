"""How far ratings can be relied on: the judge asked again, and people who rated the same answers.

```
folder/                     one that rubric_runs filled
    repeats/<item>.json     the second rating, in the form of the first
```
"""

from __future__ import annotations

import csv
import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsify_crosscoder.files import atomic_path

from ..clients.judge import fitting
from .ask import ask_all, kept_results
from .bootstrap import LEVEL, Array, limits, prompt_weights
from .rating import LEVELS, Rating
from .results import ResultKind
from .rubric_runs import RUBRIC, Item, digest, load_items, to_rate
from .rubrics import Rubric

# isort: split
from delphi.clients.client import Client

REPEATED = ResultKind("repeats", Item, "a rating")
AGAIN = "This is rating 2 of this answer; rating 1 is not known to you."
"""What a second request has and a first has not. It also gets another code, and so no stored answer
fits it. Differences come from this line and from the judge's own noise."""

COLUMNS = ("item", "dimension", "score")

_SIZE = len(LEVELS)
_DISTANCE = np.abs(np.subtract.outer(np.arange(_SIZE), np.arange(_SIZE)))
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Estimate:
    """A measure with its 95% interval."""

    value: float | None
    """None where it is not defined."""

    low: float | None
    """None too where the sample cannot say, as kappa's where all pairs agree."""

    high: float | None


@dataclass(frozen=True)
class Agreement:
    """How well two ratings of the same answers agree."""

    n: int
    """Answers that both rated."""

    prompts: int
    """Prompts that these are answers to, which the intervals are over."""

    exact: Estimate
    """Share of equal scores."""

    within_one: Estimate
    """Share of scores that differ by at most one."""

    kappa: Estimate
    """Cohen's, with quadratic weights: 1 is full agreement, 0 what chance gives. Not defined where
    one and the same score was given throughout."""

    spearman: Estimate
    """Rank correlation; not defined where either gave one score throughout."""


def agreement(
    first: Sequence[int], second: Sequence[int], prompts: Sequence[Hashable] | None = None
) -> Agreement:
    """Agreement of two ratings from 1 to 5 of the same answers, in the same order.

    `prompts` says which answers belong together, by default none do. Shares have the intervals of
    `bootstrap`; those of kappa and the correlation are percentiles of the same draws, which are
    somewhat narrow: in simulations they covered 92 to 96% at 100 answers, 91 to 96% at 50 and 88 to
    95% at 20. Raises ValueError for scores that are none and for unequal lengths.
    """
    a, b = np.asarray(first), np.asarray(second)
    if len(a) != len(b) or (prompts is not None and len(prompts) != len(a)):
        raise ValueError(f"Ratings cannot be paired: there are {len(a)} and {len(b)}.")
    if not np.isin(np.concatenate([a, b]), list(LEVELS)).all():
        raise ValueError("Scores must be whole numbers from 1 to 5.")
    nothing = Estimate(None, None, None)
    if not len(a):
        return Agreement(0, 0, nothing, nothing, nothing, nothing)
    names = list(range(len(a))) if prompts is None else list(prompts)
    groups = {name: number for number, name in enumerate(dict.fromkeys(names))}
    # Every measure is one of the table of how often which scores came together.
    tables = np.zeros((len(groups), _SIZE, _SIZE))
    np.add.at(tables, (np.array([groups[name] for name in names]), a - 1, b - 1), 1)
    drawn = np.tensordot(prompt_weights(len(groups)), tables, 1)
    drawn /= drawn.sum((1, 2), keepdims=True)
    counts = tables.sum(0)
    table = counts / len(a)
    return Agreement(
        len(a),
        len(groups),
        _share(counts, drawn, len(groups), most=0),
        _share(counts, drawn, len(groups), most=1),
        _percentiles(quadratic_kappa(table), quadratic_kappa(drawn)),
        _percentiles(rank_correlation(table), rank_correlation(drawn)),
    )


def quadratic_kappa(tables: Array) -> Array:
    """Cohen's kappa with quadratic weights of tables of shares `[..., 5, 5]`; NaN if undefined."""
    weights = _DISTANCE**2
    chance = tables.sum(-1)[..., :, None] * tables.sum(-2)[..., None, :]
    expected = (weights * chance).sum((-1, -2))
    observed = (weights * tables).sum((-1, -2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > 1e-12, 1 - observed / expected, np.nan)


def rank_correlation(tables: Array) -> Array:
    """Spearman's correlation of tables of shares `[..., 5, 5]`, ties at their middle rank."""
    rows, columns = tables.sum(-1), tables.sum(-2)
    x = np.cumsum(rows, -1) - rows / 2 - 0.5  # middle ranks have the mean 1/2
    y = np.cumsum(columns, -1) - columns / 2 - 0.5
    together = (tables * x[..., :, None] * y[..., None, :]).sum((-1, -2))
    spread = (rows * x**2).sum(-1) * (columns * y**2).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 1e-12, together / np.sqrt(spread), np.nan)


def rated_items(folder: str | Path) -> tuple[Rubric, dict[str, Item]]:
    """A folder's rubric and the items with a rating by it, by their names.

    Left out are items without scores, and those that another rubric was used for. Raises
    FileNotFoundError where there is no such folder or rubric, ValueError where there is no item.
    """
    rubric = Rubric.load(Path(folder) / RUBRIC)
    items = {
        name: item
        for name, item in load_items(folder).items()
        if item.rating.status == "ok" and item.asked == _asked(rubric, item)
    }
    if not items:
        raise ValueError(f"{folder} has no ratings by its {RUBRIC}: run the rubric command first.")
    return rubric, items


def sample(items: Mapping[str, Item], size: int, seed: int = 0) -> list[Item]:
    """Items in random order; a larger sample begins with the smaller one of the same seed."""
    if size < 1:
        raise ValueError(f"A sample has at least one item, not {size}.")
    names = sorted(items)
    random.Random(seed).shuffle(names)
    return [items[name] for name in names[:size]]


async def repeat(
    client: Client,
    rubric: Rubric,
    items: Sequence[Item],
    folder: str | Path,
    *,
    max_concurrent: int | None = None,
    temperature: float = 0.0,
    **generation_kwargs: Any,
) -> dict[str, Rating]:
    """A second rating of each item, by its name, kept in the folder as the first is.

    The judge is asked as before but for the line `AGAIN`.
    """
    options: dict[str, Any] = {"temperature": temperature, **generation_kwargs}
    todo = [to_rate(client, rubric, item.place, AGAIN, options) for item in items]
    found = kept_results(REPEATED, folder, todo)
    left = [one for one in todo if one.name not in found]
    at_once = max_concurrent or fitting(client)
    found |= await ask_all(REPEATED, folder, left, at_once, "Rating again")
    return {name: item.rating for name, item in found.items()}


def repeat_agreement(
    rubric: Rubric, items: Sequence[Item], repeats: Mapping[str, Rating]
) -> dict[str, Agreement]:
    """By dimension, first against second ratings, where there are both."""
    both = [item for item in items if item.item in repeats and repeats[item.item].scores]
    return {
        label: agreement(
            [item.rating.scores[label] for item in both],
            [repeats[item.item].scores[label] for item in both],
            [item.prompt for item in both],
        )
        for label in rubric.labels
    }


def human_agreement(
    rubric: Rubric, items: Mapping[str, Item], labels: Mapping[str, Mapping[str, int]]
) -> dict[str, Agreement]:
    """By dimension, people's scores (see `read_labels`) against the judge's."""
    found = {}
    for label in rubric.labels:
        scores = labels.get(label, {})
        found[label] = agreement(
            list(scores.values()),
            [items[name].rating.scores[label] for name in scores],
            [items[name].prompt for name in scores],
        )
    return found


def read_labels(
    path: str | Path, rubric: Rubric, items: Mapping[str, Item]
) -> dict[str, dict[str, int]]:
    """People's scores from a CSV file with the columns item, dimension and score.

    By dimension and item. Rows without a score are left out and other columns ignored. Raises
    ValueError, with the line, for a missing column, a score that is no whole number from 1 to 5, an
    unknown item or dimension, one that is labelled twice, and a file without any score.
    """
    path = Path(path)
    found: dict[str, dict[str, int]] = {label: {} for label in rubric.labels}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(
                    f"{path} has no column {', '.join(missing)}: its first line must name "
                    f"{', '.join(COLUMNS)}, with commas between."
                )
            for row in reader:
                _read_row(row, f"{path}, line {reader.line_num}", found, items)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no CSV file in UTF-8: {error}") from None
    if not any(found.values()):
        raise ValueError(f"{path} has no scores: fill in the column score.")
    return found


def write_template(path: str | Path, rubric: Rubric, items: Sequence[Item]) -> None:
    """A CSV file for people to fill in: a row per item and dimension, without the judge's score.

    Neither model nor strength is in it. Raises ValueError where the file exists.
    """
    path = Path(path)
    if path.exists():
        raise ValueError(f"{path} exists, perhaps with somebody's scores: give another name.")
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8-sig") as file,
    ):
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "prompt", "answer"])
        for item in items:
            texts = [_no_formula(item.prompt), _no_formula(item.answer)]
            for label in rubric.labels:
                writer.writerow([item.item, label, "", *texts])


def table(title: str, found: Mapping[str, Agreement]) -> str:
    """Markdown: a row per dimension."""
    lines = [f"**{title}**", "", "| Dimension | n | Exact | Within one | Kappa | Spearman |"]
    lines.append("| --- |" + " ---: |" * 5)
    for label, one in found.items():
        cells = [_cell(e) for e in (one.exact, one.within_one, one.kappa, one.spearman)]
        lines.append(f"| {label} | {one.n} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _asked(rubric: Rubric, item: Item, note: str = "") -> str:
    messages = rubric.messages(item.prompt, item.answer, ended=item.ended, note=note)
    return digest(messages)


def _share(counts: Array, drawn: Array, n: int, most: int) -> Estimate:
    """Share of pairs that differ by at most `most`."""
    close = most >= _DISTANCE
    value = float(counts[close].sum() / counts.sum())
    if n == 1:
        return Estimate(value, 0.0, 1.0)
    low, high = limits(drawn[:, close].sum(1), n, 0.0, 1.0)
    return Estimate(value, float(np.clip(low, 0, value)), float(np.clip(high, value, 1)))


def _percentiles(value: Array, draws: Array) -> Estimate:
    if np.isnan(value):
        return Estimate(None, None, None)
    draws = draws[~np.isnan(draws)]
    if not len(draws) or np.ptp(draws) < 1e-9:
        return Estimate(float(value), None, None)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Estimate(float(value), float(low), float(high))


def _read_row(
    row: Mapping[str, str | None],
    where: str,
    found: dict[str, dict[str, int]],
    items: Mapping[str, Item],
) -> None:
    item, label, score = ((row[name] or "").strip() for name in COLUMNS)
    if not score:
        return
    if label not in found:
        raise ValueError(f"{where}: there is no dimension '{label}', only {', '.join(found)}.")
    if item not in items:
        raise ValueError(f"{where}: there is no item '{item}' with a rating by the judge.")
    if score not in map(str, LEVELS):
        raise ValueError(f"{where}: the score must be a whole number from 1 to 5, not '{score}'.")
    if item in found[label]:
        raise ValueError(f"{where}: {label} of item {item} has a score already.")
    found[label][item] = int(score)


def _no_formula(text: str) -> str:
    """Text that a spreadsheet does not take for a formula: models may write one."""
    return f"'{text}" if text.lstrip().startswith(_FORMULA) or text.startswith(_FORMULA) else text


def _cell(one: Estimate) -> str:
    if one.value is None:
        return "-"
    return f"{one.value:.2f}" + ("" if one.low is None else f" [{one.low:.2f}, {one.high:.2f}]")
