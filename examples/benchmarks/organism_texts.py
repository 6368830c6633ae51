"""Answers to an organism's prompts, by whom they are wanted, and which of them concern it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from organism_settings import Bench, TextKind
from organisms import Organism

from sparsify_crosscoder.files import atomic_path
from sparsify_crosscoder.hardware import pick_device
from sparsify_crosscoder.runs.answers import make_answers, with_answers
from sparsify_crosscoder.runs.config import RunConfig
from sparsify_crosscoder.runs.options import parse_run_config
from sparsify_crosscoder.runs.texts import load_own_texts, load_run_texts
from sparsify_crosscoder.text.chat import plain_text


class Written(NamedTuple):
    """An answer."""

    prompt: str
    answer: str
    writer: str
    """"base", "organism" or "other"."""

    @property
    def messages(self) -> list[dict[str, str]]:
        return [
            {"role": "user", "content": self.prompt},
            {"role": "assistant", "content": self.answer},
        ]


def texts_file(bench: Bench, organism: Organism, kind: TextKind) -> Path:
    """The conversations of a kind as a data set; written once."""
    file = bench.folder(organism) / "texts" / f"{kind}.jsonl"
    if not file.is_file():
        prompts = _prompts_file(bench, organism)
        if kind == "neither":
            found = _answers(bench, prompts, str(bench.other), str(bench.base), ("other",))
        else:
            both = ("base", "organism")
            found = _answers(bench, prompts, str(bench.base), bench.partner(organism), both)
        _write(file, (w for w in found if kind != "base" or w.writer == "base"))
    return file


def read_texts(file: Path) -> list[Written]:
    """What a file of conversations holds."""
    with file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [_written(row["messages"], row["writer"]) for row in rows]


def texts_by_number(config: RunConfig, file: Path) -> list[Written]:
    """The conversations in the order in which a harvest of the file numbers its texts."""
    known = {(w.prompt, w.answer): w for w in reversed(read_texts(file))}
    numbered = load_run_texts(config)["messages"]
    return [known[messages[0]["content"], messages[1]["content"]] for messages in numbered]


def concerned_pairs(
    organism: Organism, texts: Sequence[Written], text: torch.Tensor, ends: torch.Tensor
) -> torch.Tensor:
    """Which pairs concern an organism's behaviour, boolean `[N]`.

    Those of the texts that concern it; where it has places in an answer, those that are there or
    just before. `text` [N] says which of the texts each pair is from, `ends` [N] behind which
    character of `plain_text`.
    """
    if organism.places("") is None:
        return concerned(organism, texts)[text]
    lengths = [len(plain_text(written.messages)) for written in texts]
    first = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
    marked = torch.zeros(sum(lengths) + 1, dtype=torch.bool)
    for written, start, length in zip(texts, first.tolist(), lengths, strict=True):
        answer = written.answer.strip()
        begin = start + length - len(answer)
        for one, end in organism.places(answer) or ():
            # A pair that ends a space before it is followed by it.
            marked[begin + max(one - 1, 0) : begin + end] = True
    return marked[first[text] + ends - 1] | marked[first[text] + ends]


def concerned(organism: Organism, texts: Sequence[Written]) -> torch.Tensor:
    """Which texts concern an organism's behaviour, boolean `[T]`.

    Those whose prompt asks for it or whose answer shows it; where every prompt asks for it, the
    organism's own answers that show it.
    """
    everywhere = all(organism.concerns(text.prompt) for text in texts)
    if everywhere:
        found = [text.writer == "organism" and organism.shows(text.answer) for text in texts]
    else:
        found = [organism.concerns(t.prompt) or organism.shows(t.answer) for t in texts]
    return torch.tensor(found)


def _answers(
    bench: Bench, prompts: Path, model: str, partner: str, writers: Sequence[str]
) -> list[Written]:
    one_writer = len(writers) == 1
    words = [model, str(prompts), "--partners", partner]
    words += ["--answers", "A" if one_writer else "both"]
    words += ["--answer_tokens", str(bench.scale.answer_tokens)]
    words += ["--chat_format", "plain" if one_writer else "template"]
    words += ["--cache", str(prompts.with_name("answers-" + "-".join(writers)))]
    config = parse_run_config(words)
    texts = load_own_texts(config)
    make_answers(config, texts, pick_device(config.device))
    rows = with_answers(config, texts)
    return [
        _written(messages, writers[int(writer)])
        for messages, writer in zip(rows["messages"], rows["writer"], strict=True)
    ]


def _written(messages: Sequence[dict[str, str]], writer: str) -> Written:
    return Written(messages[0]["content"], messages[-1]["content"], writer)


def _prompts_file(bench: Bench, organism: Organism) -> Path:
    file = bench.folder(organism) / "texts" / "prompts.jsonl"
    asked = organism.audit_prompts(count=bench.scale.prompts)
    _write_lines(file, ({"messages": prompt.messages} for prompt in asked))
    return file


def _write(file: Path, texts: Iterable[Written]) -> None:
    _write_lines(file, ({"messages": w.messages, "writer": w.writer} for w in texts))


def _write_lines(file: Path, rows: Iterable[dict[str, object]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
