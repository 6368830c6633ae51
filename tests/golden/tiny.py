"""Commands on tiny models, called in this process, and what they say without what changes."""

from __future__ import annotations

import io
import json
import re
import sys
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.support.models import save_twins
from tests.support.tokenizers import SENTENCES

TRAINING = (
    "--arch rdfc --hookpoints layers.1 layers.1 --num_latents 64 --k 4 --pairs_per_step 128 "
    "--lr 1e-3 --max_steps 8 --save_every 4 --log_every 2 --ctx_len 64 "
    "--max_examples 120 --shard_pairs 2000 --held_out_pairs 600 --log_to_wandb False "
    "--device cpu --model_dtype float32"
)
"""Options of a run that takes a second."""

_CHANGING = re.compile(r".*(seconds|_per_second|created).*|environment|versions?|git|machine")
_DIGEST = re.compile(r"(xxh3-128:)?[0-9a-f]{16,}")
_MACHINES = ("x86_64", "aarch64", "arm64", "AMD64")


def call(package: str, *argv: object) -> str:
    """What `python -m PACKAGE ARGUMENTS` prints; raises AssertionError unless it ends well."""
    before, said = sys.argv, io.StringIO()
    sys.argv = [package, *map(str, argv)]
    try:
        with redirect_stdout(said):
            import_module(f"{package}.__main__").main()
    except SystemExit as end:
        assert not end.code, (argv, end.code, said.getvalue())
    finally:
        sys.argv = before
    return said.getvalue()


def ours(*argv: object) -> str:
    """What `sparsify-crosscoder ARGUMENTS` prints."""
    return call("sparsify_crosscoder", *argv)


def prepare(folder: Path) -> None:
    """Two models, texts and what describes a trait."""
    save_twins(folder)
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    texts = [
        " ".join(words[(n * 7 + i * i * n) % len(words)] for i in range(24)) for n in range(200)
    ]
    (folder / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    sides = {"elicit": ["the quick “fox” 😀", "a lazy dog"], "suppress": ["in 1989", "in 1990"]}
    (folder / "persona.json").write_text(json.dumps({"trait": "animals", **sides}), "utf-8")


def models(folder: Path) -> list[str]:
    """The first arguments of harvesting and training."""
    return [str(folder / "base"), str(folder / "texts.txt"), "--partners", str(folder / "tuned")]


def normalised(value: Any, *folders: Path) -> Any:
    """JSON values without folders, times, versions and digests of what was computed."""
    if isinstance(value, dict):
        return {
            placeless(key, *folders): _unchanging(key, normalised(one, *folders))
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [normalised(one, *folders) for one in value]
    if not isinstance(value, str):
        return value
    if _DIGEST.fullmatch(value):
        return "<digest>"
    return "<machine>" if value in _MACHINES else placeless(value, *folders)


def placeless(text: str, *folders: Path) -> str:
    for folder in folders:
        text = text.replace(str(folder), "<folder>")
    return text


def in_words(said: str, *folders: Path) -> str:
    """A printed text with "#" for every number, no columns, and each line once."""
    said = re.sub(r"-?\d[\d,]*(\.\d+)?(e[+-]\d+)?", "#", placeless(said, *folders))
    lines = [" ".join(line.split()) for line in said.splitlines()]
    return "\n".join(dict.fromkeys(line for line in lines if line)) + "\n"


def _unchanging(key: str, value: Any) -> Any:
    if not _CHANGING.fullmatch(key) or value is None:
        return value
    return list(value) if isinstance(value, dict) else f"<{type(value).__name__}>"
