"""The training command's line for two tiny models, and what it reads."""

import json
from pathlib import Path

from tests.support.models import save_tiny_model
from tests.support.tokenizers import byte_level_tokenizer, metaspace_tokenizer

SENTENCES = [
    "The quick brown fox number {n} jumps over {m} lazy dogs, and nobody minds at all.",
    "In {n} the river turned north; by {m} it had found the sea again.",
    "A list of {n} names was read aloud while {m} people listened in the hall.",
]
RUN = Path("checkpoints") / "run"
CODER = RUN / "layers.1+h.2"
"""Where `command` leaves its run and its crosscoder."""


def save_inputs(folder: Path) -> Path:
    """Write models of two architectures with tokenizers of their own, and 300 texts."""
    save_tiny_model(folder / "llama", "llama", byte_level_tokenizer(), width=24)
    save_tiny_model(folder / "gpt2", "gpt2", metaspace_tokenizer(bos=True), width=32)
    with open(folder / "texts.jsonl", "w", encoding="utf-8") as file:
        for n in range(300):
            text = " ".join(s.format(n=n * 7, m=n + 1900) for s in SENTENCES)
            file.write(json.dumps({"text": text}) + "\n")
    return folder


def command(inputs: Path, *options: str, arch: str = "dfc", **changed: str) -> list[str]:
    """A run of `arch` over the `inputs`; an option that is changed to "" is left out."""
    given = {
        "partners": str(inputs / "gpt2"),
        "hookpoints": "layers.1 h.2",
        "num_latents": "64",
        "k": "4",
        "pairs_per_step": "128",
        "max_steps": "12",
        "ctx_len": "64",
        "lr": "1e-3",
        "run_name": "run",
        "log_to_wandb": "False",
        "device": "cpu",
        **changed,
    }
    model, dataset = given.pop("model", str(inputs / "llama")), given.pop("dataset", None)
    argv = [model, dataset or str(inputs / "texts.jsonl"), "--arch", arch]
    for name, value in given.items():
        if value:
            argv += [f"--{name}", *value.split()]
    return [*argv, *options]
