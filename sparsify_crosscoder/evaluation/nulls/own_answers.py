"""What one of a run's models writes itself, for a fine-tune that is to learn nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...files import atomic_path
from ...harvest.model_name import ModelName
from ...runs.answers import load_text_tokenizers, make_answers, with_answers
from ...runs.config import RunConfig
from ...runs.pairs import run_store
from ...runs.run import Run
from ...runs.text_windows import windows_of
from ...runs.texts import load_own_texts, load_windows
from ...text.answers import prompt_of

MOST = 96
ANSWER_TOKENS = 64


class Learnt(NamedTuple):
    """What of a run's texts a fine-tune learns; its null is read on the others."""

    rows: set[int]
    """Numbers of texts."""

    prompts: list[Any]
    """Of those that are conversations, each once."""


def learnt(run: Run) -> Learnt:
    """Half of a run's prompts, or of its texts where none has any; `MOST` at most."""
    keys = []
    prompts: dict[str, Any] = {}
    for row in map(dict, run.texts()):
        prompt = prompt_of(row["messages"]) if row.get("messages") is not None else None
        keys.append(None if prompt is None else json.dumps(prompt))
        if prompt is not None:
            prompts.setdefault(json.dumps(prompt), prompt)
    if not prompts:
        return Learnt(set(range(min(MOST, len(keys) // 2))), [])
    chosen = dict([*prompts.items()][: min(MOST, len(prompts) // 2)])
    return Learnt({i for i, key in enumerate(keys) if key in chosen}, [*chosen.values()])


class OwnAnswers(NamedTuple):
    """Who answers, and where the answers are kept."""

    model: ModelName
    source: int
    """Of the run, as which the model reads its texts."""

    folder: Path
    seed: int


def own_windows(run: Run, own: OwnAnswers, device: torch.device) -> list[list[int]]:
    """Token ids of what a model answers itself to the prompts that are learnt.

    Where there are none, of the texts that are.
    """
    learns = learnt(run)
    if not learns.prompts:
        store = run_store(run.config)
        if store is None:
            windows, _ = load_windows(run.config, run.sources(device))
        else:
            windows = store.windows
        ids = zip(windows["text_id"][:], windows[f"input_ids_{own.source}"][:], strict=True)
        return [window for text, window in ids if text in learns.rows]
    options = _answering(run, own)
    write_texts(Path(options.dataset), [{"messages": prompt} for prompt in learns.prompts])
    texts = load_own_texts(options)
    make_answers(options, texts, device)
    tokenizers = load_text_tokenizers(options)
    return windows_of(options, with_answers(options, texts), tokenizers)["input_ids_0"][:]


def _answering(run: Run, own: OwnAnswers) -> RunConfig:
    """Options by which a model answers prompts."""
    name, revision = own.model.name, own.model.revision
    return RunConfig(
        model=name,
        dataset=str(own.folder / "prompts.jsonl"),
        revision=revision,
        partners=[name],
        partner_revisions=[revision] if revision else [],
        answers="A",
        answer_tokens=ANSWER_TOKENS,
        answer_seed=own.seed,
        cache=str(own.folder / "own"),
        model_dtype=run.config.model_dtype,
        hf_token=run.config.hf_token,
        trust_remote_code=run.config.trust_remote_code,
    )


def write_texts(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as a data set of JSON lines, once."""
    if not file.is_file():
        with atomic_path(file) as temporary, temporary.open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
