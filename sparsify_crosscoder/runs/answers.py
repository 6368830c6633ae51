"""The answers that a run's models write to the prompts of its conversations, kept in a folder.

    <store or run>/answers/A_000000_00.json     a batch of A's answers to the first prompts
    ...

A batch is written whole or not at all and never changed, so a harvest that was killed goes on
behind the last one. Which prompts are in a batch depends on the data set alone: `_GROUP` rows of
it at a time are sorted by the length of their prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import torch
from datasets import Dataset
from jinja2.exceptions import TemplateError
from tqdm.auto import tqdm

from ..files import atomic_write_json
from ..hardware import give_back_memory, pick_device
from ..harvest.answering import Question, fits, question_batches, write_answers
from ..harvest.model_identity import checkpoint_digest
from ..harvest.sources import load_fast_tokenizer, load_language_model
from ..hashing import hash_json
from ..records import read_json
from ..store.manifest import read_manifest
from ..store.writing import ANSWERS, check_free
from ..text.answers import (
    Wanted,
    answered_texts,
    markers_of,
    prompt_ids,
    prompt_of,
    said_in_answer,
    wanted_texts,
)
from ..text.lent_templates import lend_template
from ..text.roles import LETTERS
from ..text.texts import rows_of
from ..text.window_numbers import window_numbers
from ..world import current_world
from .config import RunConfig, run_folder
from .models import run_revisions
from .text_windows import windows_of

_GROUP = 256
_REMEDY = "Delete it and run the same harvest again: it is written anew."
_OF_ANSWERS = ("answers", "answer_tokens", "answer_seed")


class _Answer(TypedDict):
    row: int
    text: str
    tokens: int
    end: Literal["ended", "cut", "too long"]


class _Batch(TypedDict):
    key: str
    answers: list[_Answer]


class _Task(NamedTuple):
    """A batch that is to be answered."""

    file: Path
    key: str
    rows: list[int]
    questions: list[Question]


@dataclass
class _Asking:
    """What a run's models are asked."""

    config: RunConfig
    texts: Dataset
    tokenizers: list[Any]
    device: torch.device

    @cached_property
    def markers(self) -> list[str]:
        return markers_of(self.tokenizers)

    @property
    def names(self) -> list[str]:
        return [self.config.model, *self.config.partners]


def answers_folder(config: RunConfig) -> Path:
    """Where a run's answers are: in its store, or without one in its own folder."""
    return (Path(config.cache) if config.cache is not None else run_folder(config)) / ANSWERS


def make_answers(config: RunConfig, texts: Dataset, device: torch.device) -> None:
    """Have the models answer the prompts that the options ask for, as far as that is not done.

    With --pairs as many of the first as give so many pairs. In a distributed run every rank writes
    its share. Raises ValueError, before a model is loaded, for texts without conversations and for
    options or models that cannot answer, or that are not those of the answers that are there.
    """
    asking = _Asking(config, texts, load_text_tokenizers(config), device)
    _check(asking)
    count = len(texts) if config.pairs is None else min(_GROUP, len(texts))
    while True:
        for source in range(len(asking.names)):
            _have_answered(asking, source, count)
        if config.pairs is None or count == len(texts):
            return
        pairs = _num_pairs(asking, count)
        if pairs >= config.pairs:
            return
        more = max(int(1.05 * count * config.pairs / max(pairs, 1)), count + 1)
        count = min(-(-more // _GROUP) * _GROUP, len(texts))


def with_answers(config: RunConfig, texts: Dataset) -> Dataset:
    """The texts that a run reads of those that the options name, with the answers that are there.

    Raises ValueError if there are none.
    """
    folder = answers_folder(config)
    found = _texts_of(folder)
    if not found:
        raise ValueError(
            f"There are no answers in '{folder}', with which the run's texts end: run the same "
            "harvest or training again, which has the models answer."
        )
    wanted = wanted_texts(texts, config.answers, 1 + len(config.partners))
    return answered_texts(texts, wanted, found)


def answers_report(config: RunConfig) -> dict[str, dict[str, int]]:
    """For each model, by its letter, what it answered, in counts.

    `answers` are its texts, `empty` and `too long` what was left out of them (an answer without
    text, a prompt that has no room), `cut` the answers that reached --answer_tokens.
    """
    counts: dict[str, Counter[str]] = {}
    for one, answer in _answers_in(answers_folder(config)):
        count = counts.setdefault(LETTERS[one.writer], Counter())
        left_out = "too long" if answer["end"] == "too long" else "empty"
        count["answers" if answer["text"] else left_out] += 1
        count["cut"] += answer["end"] == "cut"
        count["tokens"] += answer["tokens"]
    names = ("answers", "empty", "too long", "cut", "tokens")
    return {letter: {n: count[n] for n in names} for letter, count in sorted(counts.items())}


def load_text_tokenizers(config: RunConfig) -> list[Any]:
    """The models' tokenizers without the models, with the chat templates of the run's texts."""
    load = partial(
        load_fast_tokenizer, token=config.hf_token, trust_remote_code=config.trust_remote_code
    )
    names = [config.model, *config.partners]
    revisions = run_revisions(config)
    tokenizers = [load(n, revision=r) for n, r in zip(names, revisions, strict=True)]
    lend_template(tokenizers, config.chat_template_from)
    return tokenizers


def _check(asking: _Asking) -> None:
    config = asking.config
    if "messages" not in asking.texts.column_names:
        raise ValueError(
            f"--answers {config.answers}: '{config.dataset}' holds plain texts, and only "
            "conversations have prompts to answer. Leave --answers off."
        )
    if config.append:
        raise ValueError(
            "--answers and --append do not go together: harvest into a store of its own, and join "
            "them with `sparsify-crosscoder store FOLDER ... --merge_into NEW`."
        )
    for tokenizer in asking.tokenizers if config.chat_format == "template" else ():
        if not tokenizer.chat_template:
            raise ValueError(
                f"--answers {config.answers}: {tokenizer.name_or_path} has no chat template. With "
                '--chat_format plain it answers plain text ("User: ...", "Assistant:"), and all '
                "models read what was said without templates."
            )
    if config.cache is None:
        return
    check_free(Path(config.cache))
    manifest = read_manifest(Path(config.cache))
    for origin in [part["origin"] for part in manifest["parts"]] if manifest else []:
        for name in _OF_ANSWERS:
            before = (origin or {}).get(name, getattr(RunConfig, name))
            if before != getattr(config, name):
                raise ValueError(
                    f"The store '{config.cache}' was harvested with --{name} {before}; give "
                    "another folder for other answers."
                )


def _have_answered(asking: _Asking, source: int, count: int) -> None:
    """Have one model answer what it is to answer of the first `count` rows."""
    config, world = asking.config, current_world()
    tasks = list(_tasks(asking, source, count))[world.rank :: world.size]
    mine = [task for task in tasks if not _is_there(task)]
    if mine:
        model, _ = load_language_model(
            asking.names[source],
            device=pick_device(config.devices[source]) if config.devices else asking.device,
            dtype=config.model_dtype,
            revision=run_revisions(config)[source],
            load_in_8bit=config.load_in_8bit,
            token=config.hf_token,
            trust_remote_code=config.trust_remote_code,
        )
        asked = sum(len(task.rows) for task in mine)
        with tqdm(
            desc=f"{LETTERS[source]} answers {asked:,} prompts",
            unit=" tokens",
            unit_scale=True,
            total=asked * config.answer_tokens,
            disable=world.rank > 0,
        ) as progress:
            for task in mine:
                planned = progress.n + len(task.rows) * config.answer_tokens
                _answer(asking, source, model, task, progress.update)
                progress.total -= planned - progress.n  # of answers that ended before
        del model
        give_back_memory()
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def _tasks(asking: _Asking, source: int, count: int) -> Iterator[_Task]:
    """The batches of one model's answers to what it is to answer of the first `count` rows."""
    config, tokenizer = asking.config, asking.tokenizers[source]
    name, revision = asking.names[source], run_revisions(config)[source]
    model = checkpoint_digest(name, revision) or name
    for start in range(0, count, _GROUP):
        rows = range(start, min(start + _GROUP, count))
        wanted = wanted_texts(asking.texts, config.answers, len(asking.names), rows)
        asked = dict(
            _prompts(asking.texts, [w.row for w in wanted if w.writer == source], tokenizer)
        )
        batches = question_batches([len(ids) for ids in asked.values()], config.answer_tokens)
        for number, places in enumerate(batches):
            chosen = [[*asked][place] for place in places]
            questions = [
                Question(asked[row], _seed(config.answer_seed, source, row)) for row in chosen
            ]
            key = [model, config.answer_tokens, tokenizer.chat_template, chosen, questions]
            file = f"{LETTERS[source]}_{start:06d}_{number:02d}.json"
            yield _Task(answers_folder(config) / file, hash_json(key), chosen, questions)


def _prompts(
    texts: Dataset, rows: Sequence[int], tokenizer: Any
) -> Iterator[tuple[int, list[int]]]:
    """The prompts of some rows as token ids, without those that the chat template refuses."""
    batch: Any = texts.with_format(None)[list(rows)]
    for row, text in zip(rows, rows_of(batch), strict=True):
        prompt = prompt_of(text)
        assert prompt is not None
        try:
            yield row, prompt_ids(prompt, tokenizer)
        except TemplateError:
            continue  # it refuses the conversation as well, which is said where that is aligned


def _seed(seed: int, source: int, row: int) -> int:
    return int(hash_json([seed, source, row])[:15], 16)


def _is_there(task: _Task) -> bool:
    """Whether a batch is answered. Raises ValueError for one of other prompts or options."""
    try:
        found: _Batch = read_json(task.file, _Batch, _REMEDY)
    except FileNotFoundError:
        return False
    if found["key"] != task.key:
        raise ValueError(
            f"'{task.file}' holds answers of another model, to other prompts, or with another "
            f"--answer_tokens or --answer_seed. Give another folder or delete '{task.file.parent}'."
        )
    return True


def _answer(
    asking: _Asking, source: int, model: Any, task: _Task, progress: Callable[[int], object]
) -> None:
    """Have a model answer a batch, and write the batch's file."""
    most, tokenizer = asking.config.answer_tokens, asking.tokenizers[source]
    able = [fits(model, question, most) for question in task.questions]
    asked = [question for question, ok in zip(task.questions, able, strict=True) if ok]
    written = iter(write_answers(model, tokenizer, asked, most, progress) if asked else ())
    answers: list[_Answer] = []
    for row, ok in zip(task.rows, able, strict=True):
        if not ok:
            answers.append({"row": row, "text": "", "tokens": 0, "end": "too long"})
            continue
        ids, ended = next(written)
        text = said_in_answer(ids, tokenizer, asking.markers)
        end: Literal["ended", "cut"] = "ended" if ended else "cut"
        answers.append({"row": row, "text": text, "tokens": len(ids), "end": end})
    atomic_write_json(task.file, _Batch(key=task.key, answers=answers))


def _answers_in(folder: Path) -> Iterator[tuple[Wanted, _Answer]]:
    """Every answer that is there."""
    for file in sorted(folder.glob("[A-H]_*.json")):
        batch: _Batch = read_json(file, _Batch, _REMEDY)
        for answer in batch["answers"]:
            yield Wanted(answer["row"], LETTERS.index(file.name[0])), answer


def _texts_of(folder: Path) -> dict[Wanted, str]:
    return {one: answer["text"] for one, answer in _answers_in(folder)}


def _num_pairs(asking: _Asking, count: int) -> int:
    """Pairs of the first `count` rows, answered."""
    config, texts = asking.config, asking.texts
    wanted = wanted_texts(texts, config.answers, len(asking.names), range(count))
    answered = answered_texts(texts, wanted, _texts_of(answers_folder(config)))
    windows = windows_of(config, answered, asking.tokenizers)
    return int(window_numbers(windows, "num_pairs").sum())
