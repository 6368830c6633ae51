"""What one of a run's models writes itself, for a fine-tune that is to learn nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ...files import atomic_path
from ...runs.answers import load_text_tokenizers, make_answers, with_answers
from ...runs.config import RunConfig
from ...runs.pairs import run_store
from ...runs.run import Run
from ...runs.text_windows import windows_of
from ...runs.texts import load_own_texts, load_windows
from ...text.answers import prompt_of

ANSWERED = 96  # prompts
ANSWER_TOKENS = 64


def own_windows(
    run: Run, source: int, folder: Path, seed: int, device: torch.device
) -> list[list[int]]:
    """Token ids of what a source's model writes itself, to prompts of the run's texts.

    Where these have none, of the texts as the run reads them. The answers are kept in `folder`.
    """
    options = _answering(run, source, folder, seed)
    prompts = _prompts(run)
    if not prompts:
        store, column = run_store(run.config), f"input_ids_{source}"
        if store is not None:
            return store.windows[column][:]
        return load_windows(run.config, run.sources(device))[0][column][:]
    write_texts(Path(options.dataset), [{"messages": prompt} for prompt in prompts])
    texts = load_own_texts(options)
    make_answers(options, texts, device)
    tokenizers = load_text_tokenizers(options)
    return windows_of(options, with_answers(options, texts), tokenizers)["input_ids_0"][:]


def _answering(run: Run, source: int, folder: Path, seed: int) -> RunConfig:
    """Options by which a source's model answers prompts."""
    name, revision, *_ = run.ends[source]
    return RunConfig(
        model=name,
        dataset=str(folder / "prompts.jsonl"),
        revision=revision,
        partners=[name],
        partner_revisions=[revision] if revision else [],
        answers="A",
        answer_tokens=ANSWER_TOKENS,
        answer_seed=seed,
        cache=str(folder / "own"),
        model_dtype=run.config.model_dtype,
        hf_token=run.config.hf_token,
        trust_remote_code=run.config.trust_remote_code,
    )


def _prompts(run: Run) -> list[Any]:
    """Some prompts of a run's conversations, each once."""
    found: dict[str, Any] = {}
    for row in map(dict, run.texts()):
        prompt = prompt_of(row["messages"]) if row.get("messages") is not None else None
        if prompt is not None:
            found.setdefault(json.dumps(prompt), prompt)
        if len(found) == ANSWERED:
            break
    return [*found.values()]


def write_texts(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as a data set of JSON lines, once."""
    if not file.is_file():
        with atomic_path(file) as temporary, temporary.open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
