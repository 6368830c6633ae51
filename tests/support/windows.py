"""Windows datasets of random tokens, without texts and tokenizers behind them."""

import numpy as np
from datasets import Dataset


def random_windows(
    num_windows: int = 12,
    *,
    sources: int = 2,
    vocab_size: int = 128,
    max_tokens: int = 24,
    windows_per_text: int = 2,
    same_tokens: bool = False,
    seed: int = 0,
) -> Dataset:
    """Windows of random lengths, with random pairs, as `prepare_windows` gives them."""
    rng = np.random.default_rng(seed)
    columns: dict[str, list] = {"text_id": [], "num_pairs": [], "starts": [], "ends": []}
    for window in range(num_windows):
        num_pairs = int(rng.integers(1, max_tokens // 2))
        columns["text_id"].append(100 + window // windows_per_text)
        columns["num_pairs"].append(num_pairs)
        columns["ends"].append(sorted(rng.choice(500, num_pairs, replace=False).tolist()))
        columns["starts"].append([0, *columns["ends"][-1][:-1]])
        ids: list[int] = []
        for s in range(sources):
            if not (same_tokens and s):
                length = int(rng.integers(num_pairs + 1, max_tokens + 1))
                ids = rng.integers(1, vocab_size, length).tolist()
                pairs = sorted(rng.choice(np.arange(1, length), num_pairs, replace=False).tolist())
            columns.setdefault(f"input_ids_{s}", []).append(ids)
            columns.setdefault(f"pairs_{s}", []).append(pairs)
    return Dataset.from_dict(columns)
