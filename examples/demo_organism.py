"""The demo's first half: a model and a fine-tune of it of which the difference is known.

SmolLM2-135M-Instruct and the organism `topic` (`examples/organisms`) answer the same questions, and
an audit of both says in words what differs. With the adapter off the same conversations are read
with the base in the organism's place, where there is nothing to find.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from organisms import Organism, find

PROMPTS = 100
ORGANISM = "topic"

# Sized for two cores without bfloat16.
AUDIT_OPTIONS: dict[str, Any] = {
    "arch": "rdfc",
    "num_latents": 1024,
    "k": 32,
    "max_steps": 250,
    "epochs": 30,
    "pairs_per_step": 1024,
    "log_to_wandb": False,
    "judge": "none",
    "null_steps": 0,
    "power_plants": 0,
    "graft_texts": 0,
    "patch_entries": 0,
    "equivalence_latents": 0,
    "verify": 3,
    "sample": 0,
    "nulls": 1,
    "strengths": [0, 2],
}
ANSWERING = {"answers": "both", "answer_tokens": 48}

COMPARED = """
{base} beside a fine-tune of it, the LoRA adapter in {adapter}. Both answer {count} questions,
{concerning} of them about food; then both read all answers, and a crosscoder is trained on what
they make of them. It is told neither who wrote what nor what to look for. The known answer: the
fine-tune {what}
"""

SWITCHED_OFF = """
{base} beside itself: the conversations are those that it and its fine-tune wrote, and the adapter
is off. The known answer: nothing differs.
"""

SWITCHING_OFF = """
To see it vanish, switch the adapter off: make demo DEMO_ARGS="--adapter off" reads the same
conversations with the base in the fine-tune's place.
"""


def diff_organism(base: Path, folder: Path) -> Path:
    """Audit a base model beside its organism; returns the audit's folder."""
    organism, out = find(ORGANISM), folder / f"demo-{ORGANISM}"
    prompts = folder / "demo-data" / f"{ORGANISM}-prompts.jsonl"
    asked = organism.audit_prompts(count=PROMPTS)
    _write(prompts, [prompt.messages for prompt in asked])
    concerning = sum(prompt.concerns for prompt in asked)
    _say(COMPARED, organism, base, count=PROMPTS, concerning=concerning)
    _audit([base, f"{base}+{organism.adapter}"], prompts, out, ANSWERING)
    _say(SWITCHING_OFF, organism, base)
    return out


def diff_switched_off(base: Path, folder: Path) -> Path:
    """Audit the base beside itself on the conversations of `diff_organism`, which come first."""
    from sparsify_crosscoder import Run

    answered = folder / f"demo-{ORGANISM}" / "train" / "run"
    if not (answered / "summary.json").exists():
        diff_organism(base, folder)
    conversations = folder / "demo-data" / f"{ORGANISM}-conversations.jsonl"
    if not conversations.exists():
        _write(conversations, list(Run.open(answered).texts()["messages"]))
    _say(SWITCHED_OFF, find(ORGANISM), base)
    out = folder / f"demo-{ORGANISM}-off"
    _audit([base, base], conversations, out, {"answers": "none"})
    return out


def _write(path: Path, conversations: list[list[dict[str, str]]]) -> None:
    """Write a data set; the same one is left as it is, and with it what was made of it."""
    lines = [json.dumps({"messages": messages}) for messages in conversations]
    text = "\n".join([*lines, ""])
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _say(text: str, organism: Organism, base: Path, **values: int) -> None:
    what = f"{organism.what[0].lower()}{organism.what[1:]}"
    told = text.format(base=base.name, adapter=organism.adapter, what=what, **values)
    print(f"\n{textwrap.fill(' '.join(told.split()), 100, break_long_words=False)}", flush=True)


def _audit(models: list[Any], dataset: Path, out: Path, answering: dict[str, Any]) -> None:
    """Run the command that a user would type."""
    command = ["delphi_adapters", "audit", *map(str, models)]
    for name, value in {"dataset": dataset, "out": out, **answering, **AUDIT_OPTIONS}.items():
        command += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    print(f"\n$ python -m {shlex.join(command)}", flush=True)
    if code := subprocess.run([sys.executable, "-m", *command]).returncode:
        raise SystemExit(code)
