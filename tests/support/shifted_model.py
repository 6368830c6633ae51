"""A tiny model whose answers differ from another's by one known direction."""

from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

from sparsify_crosscoder.commands import train
from tests.support.models import tiny_model
from tests.support.tokenizers import SENTENCES, byte_level_tokenizer


def run_of_a_shift(folder: Path) -> Path:
    """A run over a tiny model, and the same model that says "?" after half of all tokens."""
    tokenizer = byte_level_tokenizer()
    base = tiny_model("llama", causal_lm=True, vocab_size=len(tokenizer))
    tuned = deepcopy(base)
    mark = base.lm_head.weight[tokenizer("?")["input_ids"][-1]]
    embeddings: Any = tuned.get_input_embeddings()
    embeddings.weight[::2] += 8 * mark
    for name, model in (("base", base), ("tuned", tuned)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    known, rng = sorted({word for one in SENTENCES for word in one.split()}), Random(0)
    texts = [" ".join(rng.choices(known, k=12)) for _ in range(160)]
    (folder / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    options = (
        "--hookpoints layers.1 layers.1 --arch dfc --num_latents 32 --k 4 --pairs_per_step 128"
    )
    options += " --max_steps 60 --epochs 10 --lr 3e-3 --ctx_len 64 --log_to_wandb False"
    places = ["--save_dir", str(folder), "--cache", str(folder / "store"), "--run_name", "run"]
    models = [str(folder / "base"), str(folder / "texts.txt"), "--partners", str(folder / "tuned")]
    train.main([*models, *options.split(), *places, "--device", "cpu"])
    return folder / "run"
