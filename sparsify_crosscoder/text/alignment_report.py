"""What became of the texts that were cut into windows: how much of them is in pairs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from .text_loss import TextLoss
from .windows import DROPPED


@dataclass
class AlignmentReport:
    """What became of the texts."""

    texts: int
    """Texts given."""

    texts_without_pairs: int
    """Texts of which no window is left."""

    windows: int
    """Windows of at most ctx_len tokens per source."""

    pairs: int
    """Aligned positions in all windows."""

    tokens: list[int]
    """For each source, the tokens that its model reads, special tokens included."""

    aligned_fraction: list[float]
    """For each source, pairs over the tokens that are neither special nor white space."""

    aligned_fraction_per_dataset: dict[str, list[float]]
    """The same for each dataset of which a window is left."""

    dropped: dict[str, int]
    """Aligned positions that were left out, by reason."""

    characters: dict[str, dict[str, dict[str, float]]] | None = None
    """For each dataset, and in it for "all" and for each role ("plain" for plain text, "reasoning"
    for reasoning that is kept apart), the characters `said`, those of them that pairs stand for
    (`paired`), without white space, and their `share`. None where the texts are not at hand."""

    extras: dict[str, dict[str, Any]] | None = None
    """What messages have besides what they say, such as tool_calls: in how many `messages`, and
    the tokenizers whose chat templates do not write it (`lost_to`)."""


def alignment_report(
    windows: Dataset, num_texts: int, loss: TextLoss | None = None
) -> AlignmentReport:
    """Count what `prepare_windows` made of `num_texts` texts; `loss` is what was measured there."""
    count = sum(name.startswith("input_ids_") for name in windows.column_names)
    names = getattr(windows.features.get("dataset"), "names", [])
    with_pairs: set[int] = set()
    tokens = [0] * count
    # Per dataset, pairs and then each source's content tokens; the last row is for all of them.
    counts = np.zeros((len(names) + 1, 1 + count), dtype=np.int64)
    dropped = dict.fromkeys(DROPPED, 0)
    for batch in windows.with_format("arrow").iter(batch_size=4096):
        table: Any = batch
        with_pairs.update(table["text_id"].unique().to_pylist())
        for reason, column in DROPPED.items():
            dropped[reason] += int(table[column].to_numpy().sum())
        for source in range(count):
            ids = table[f"input_ids_{source}"]
            tokens[source] += sum(len(chunk.flatten()) for chunk in ids.chunks)
        columns = ["num_pairs", *(f"content_tokens_{source}" for source in range(count))]
        values = np.stack([table[column].to_numpy() for column in columns], axis=1)
        if names:
            np.add.at(counts, table["dataset"].to_numpy(), values)
        counts[-1] += values.sum(axis=0)
    fractions = (counts[:, :1] / np.maximum(counts[:, 1:], 1)).tolist()
    return AlignmentReport(
        texts=num_texts,
        texts_without_pairs=num_texts - len(with_pairs),
        windows=len(windows),
        pairs=int(counts[-1, 0]),
        tokens=tokens,
        aligned_fraction=fractions[-1],
        aligned_fraction_per_dataset={
            name: fraction
            for name, fraction, row in zip(names, fractions, counts, strict=False)
            if row[1:].any()
        },
        dropped=dropped,
        characters=loss and loss.characters_to_dict(),
        extras=loss and {key: extra._asdict() for key, extra in loss.extras.items()},
    )
