"""What one pass of `baselines` costs beside two bare forward passes of the same models.

    python examples/benchmarks/baseline_cost.py A B texts.jsonl --rounds 3 --max_examples 40

Bare: the same batches through both whole language models, which give all their logits, one after
the other; nothing is kept. Both ways take turns in one thread, in CPU seconds; the ratio is the
median of the rounds' ratios. The pass has what is done per position (KL, likelihoods, tokens);
everything has what comes behind it as well.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from statistics import median

import numpy as np
import torch
from datasets import Dataset

from sparsify_crosscoder.evaluation.baselines.comparing import baselines_of_models
from sparsify_crosscoder.evaluation.baselines.reading import read_models
from sparsify_crosscoder.harvest.batching import FORWARD_COST_CPU, batches_by_length
from sparsify_crosscoder.harvest.common_tokens import common_tokens
from sparsify_crosscoder.harvest.source import Source
from sparsify_crosscoder.runs.options import parse_run_config
from sparsify_crosscoder.runs.pairs import sources_and_windows
from sparsify_crosscoder.runs.texts import load_run_texts

ROUNDS = 3


@torch.inference_mode()
def bare(sources: Sequence[Source], windows: Dataset, batch_size: int) -> None:
    """Both models' logits at every token of the windows."""
    names = [f"{kind}_{s}" for kind in ("input_ids", "pairs") for s in range(len(sources))]
    texts = windows.select_columns(names).with_format(None)[:]
    counts = np.array([len(pairs) for pairs in texts["pairs_0"]])
    for s, source in enumerate(sources):
        assert source.head is not None
        for batch in batches_by_length(texts, [s], counts, batch_size, FORWARD_COST_CPU):
            source.head.whole(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
            )


def main(argv: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options, others = parser.parse_known_args(argv)
    first, second, dataset, *rest = others
    config = parse_run_config([first, dataset, "--partners", second, "--device", "cpu", *rest])
    torch.set_num_threads(1)
    sources, windows, _ = sources_and_windows(config, torch.device("cpu"), "on")
    times: dict[str, list[float]] = {"bare": [], "pass": []}
    for _ in range(options.rounds):
        begun = time.process_time()
        bare(sources, windows, config.batch_size)
        middle = time.process_time()
        read_models(sources, windows, batch_size=config.batch_size, memory=2e9)
        times["bare"].append(middle - begun)
        times["pass"].append(time.process_time() - middle)
    begun = time.process_time()
    common_tokens(sources[0], sources[1])
    vocabularies = time.process_time() - begun
    ratios = [one / other for one, other in zip(times["pass"], times["bare"], strict=True)]
    begun = time.process_time()
    found = baselines_of_models(sources, windows, load_run_texts(config), config.batch_size)
    everything = time.process_time() - begun
    print(f"{found.texts} texts, {found.pairs:,} pairs")
    print(f"bare {median(times['bare']):.1f} s, pass {median(times['pass']):.1f} s of CPU")
    print(f"{vocabularies:.1f} s of it once, on what the vocabularies have in common")
    print(f"ratio {median(ratios):.2f} ({', '.join(f'{one:.2f}' for one in ratios)})")
    print(f"everything {everything:.1f} s, {everything / median(times['bare']):.2f} of bare")


if __name__ == "__main__":
    main(sys.argv[1:])
