"""Steering at many strengths: one batch, or one answer after the other.

    python examples/benchmarks/steering.py           both of the demo's models, a few minutes
    python examples/benchmarks/steering.py --quick   one model, fewer strengths and tokens

On the models that `make demo` leaves (`--models`). Three prompts of different lengths, 11 strengths
of a random direction at the middle layer, 64 tokens each, the likeliest token every time:

one by one   `model.generate` for every prompt and strength, with a forward hook written by hand
hooks        `generate` with a `transformers` model: one batch, steered by hooks
nnsight      `generate` with nnsight's TransformersModel: one batch, steered by a trace

Ways take turns in one process; medians of seconds on the clock. The script ends with exit code 1
if answers differ (in float32; bfloat16 rounds otherwise in a batch, how many differ is told) or a
batch is not four times as fast.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from machine import processor

from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.hardware import pick_device
from sparsify_crosscoder.harvest.batched_generation import end_tokens
from sparsify_crosscoder.harvest.hookpoints import layer_list
from sparsify_crosscoder.harvest.sources import load_language_model
from sparsify_crosscoder.interventions.generation import Sampling, generate
from sparsify_crosscoder.interventions.prompts import encode_prompt
from sparsify_crosscoder.interventions.steering import Steering

MODELS = ("smollm2-135m-instruct", "gemma-3-270m")
PROMPTS = (
    "What's on your mind?",
    "Tell me something about the sea and about the people who live near it.",
    "What do you want to talk about?",
)
LEAST_RATIO = 4.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", type=Path, default=Path("runs/demo-data/models"))
    parser.add_argument("--quick", action="store_true", help="under two minutes")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default=None)
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    args = parser.parse_args()
    if not args.models.exists():
        raise SystemExit(f"'{args.models}' holds no models; `make demo` leaves some.")
    names = MODELS[:1] if args.quick else MODELS
    dtypes = args.dtypes[:1] if args.quick else args.dtypes
    turns, strengths, tokens = (1, range(4), 16) if args.quick else (args.turns, range(11), 64)
    device = torch.device(args.device) if args.device else pick_device()
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    print(f"{where}, torch {torch.__version__}, {torch.get_num_threads()} thread(s), {turns} turns")
    print(
        "| model | dtype | answers x tokens | one by one, s | hooks, s | nnsight, s | "
        "times as fast: hooks | nnsight | answers that differ |\n|" + "---|" * 9
    )
    rows = []
    for name in names:
        for dtype in dtypes:
            rows.append(measure(args.models / name, dtype, device, turns, list(strengths), tokens))
            print(line(rows[-1]), flush=True)
    if args.json is not None:
        atomic_write_json(args.json, {"machine": where, "torch": torch.__version__, "rows": rows})
    wrong = [r for r in rows if r["dtype"] == "float32" and r["differ"]]
    slow = [r for r in rows if r["ratio"]["hooks"] < LEAST_RATIO] if not args.quick else []
    if wrong or slow:
        print(f"claims that do not hold: {[(r['model'], r['dtype']) for r in wrong + slow]}")
        sys.exit(1)


def line(row: dict[str, Any]) -> str:
    """A measured model as a row of the table."""
    seconds = [f"{row['seconds'][way]:.1f}" for way in ("one by one", "hooks", "nnsight")]
    ratios = [f"{row['ratio'][way]:.1f}" for way in ("hooks", "nnsight")]
    size = f"{row['answers']} x {row['tokens']}"
    cells = [row["model"], row["dtype"], size, *seconds, *ratios, str(row["differ"])]
    return "| " + " | ".join(cells) + " |"


def measure(
    folder: Path, dtype: str, device: torch.device, turns: int, strengths: list[int], tokens: int
) -> dict[str, Any]:
    """Seconds of each way, and how many of the answers differ."""
    from nnsight import TransformersModel

    model, tokenizer = load_language_model(str(folder), device=device, dtype=dtype)
    path, layers = layer_list(model)
    hookpoint = f"{path}.{layers // 2}"
    ids = torch.tensor([encode_prompt(tokenizer, PROMPTS[1])], device=device)
    states: Any = model(input_ids=ids, output_hidden_states=True).hidden_states
    length = float(states[layers // 2 + 1][0, 1:].float().norm(dim=1).median()) / 10
    vector = torch.randn(
        model.config.get_text_config().hidden_size, generator=torch.Generator().manual_seed(0)
    )
    steering = Steering(vector * length / vector.norm(), hookpoint)
    traced = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    sampling = Sampling(tokens)

    def batch(subject: Any) -> list[list[int]]:
        found = generate(subject, PROMPTS, steering, strengths, sampling, tokenizer=tokenizer)
        return [answer.tokens for row in found.answers for answer in row]

    ways = {
        "one by one": lambda: one_by_one(model, tokenizer, steering, strengths, tokens),
        "hooks": lambda: batch(model),
        "nnsight": lambda: batch(traced),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    answers: dict[str, list[list[int]]] = {}
    for _ in range(turns):
        for way, run in ways.items():
            begun = perf_counter()
            answers[way] = run()
            seconds[way].append(perf_counter() - begun)
    medians = {way: median(times) for way, times in seconds.items()}
    return {
        "model": folder.name,
        "dtype": dtype,
        "answers": len(PROMPTS) * len(strengths),
        "tokens": tokens,
        "seconds": medians,
        "all_seconds": seconds,
        "ratio": {way: medians["one by one"] / medians[way] for way in ("hooks", "nnsight")},
        "differ": max(
            sum(a != b for a, b in zip(answers[way], answers["one by one"], strict=True))
            for way in ("hooks", "nnsight")
        ),
    }


@torch.inference_mode()
def one_by_one(
    model: Any, tokenizer: Any, steering: Steering, strengths: list[int], tokens: int
) -> list[list[int]]:
    """What a user would write: a hook, and one generation for every prompt and strength."""
    ends = end_tokens(model, tokenizer)
    layer = model.base_model.get_submodule(steering.hookpoint)
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([encode_prompt(tokenizer, prompt)], device=model.device)
        for strength in strengths:
            change = (strength * steering.vector).to(model.device, model.dtype)
            handle = layer.register_forward_hook(
                lambda module, args, output, change=change: output + change
            )
            try:
                output = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=tokens,
                    do_sample=False,
                    eos_token_id=sorted(ends),
                    pad_token_id=min(ends),
                )
            finally:
                handle.remove()
            answer = output[0, ids.shape[1] :].tolist()
            stop = next((i for i, token in enumerate(answer) if token in ends), None)
            found.append(answer[:stop])
    return found


if __name__ == "__main__":
    main()
