"""Where time is short, the first pairs of each text are read, as they are within whole texts."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from sparsify_crosscoder.evaluation.baselines.beginnings import (
    LEAST_PAIRS,
    beginnings,
    pairs_of_each,
)
from sparsify_crosscoder.evaluation.baselines.comparing import BaselineConfig, run_baselines
from sparsify_crosscoder.evaluation.baselines.reading import read_models
from sparsify_crosscoder.runs.options import parse_run_config
from sparsify_crosscoder.runs.pairs import sources_and_windows
from sparsify_crosscoder.text.window_numbers import window_numbers
from tests.support.models import save_twins
from tests.support.tokenizers import SENTENCES

CPU = torch.device("cpu")
WORDS = " ".join(line for line in SENTENCES if "\n" not in line).split()


@pytest.mark.parametrize(
    ("lengths", "budget", "most"),
    [([3, 10, 10], 15, 6), ([10, 3, 10], 22, 9), ([5, 5], 3, 1), ([1, 2, 9], 4, 1)],
)
def test_short_texts_leave_their_share_to_the_others(lengths, budget, most):
    assert pairs_of_each(np.array(lengths), budget) == most


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Models, windows of which each text has several, and the reading of all of them."""
    folder = tmp_path_factory.mktemp("beginnings")
    save_twins(folder)
    texts = [" ".join(WORDS[start:]) for start in range(0, 12, 3)] + ["A short one."]
    Dataset.from_dict({"text": texts}).to_json(folder / "texts.jsonl")
    models = [str(folder / "base"), str(folder / "texts.jsonl"), "--partners"]
    options = [str(folder / "tuned"), "--model_dtype", "float32", "--ctx_len", "24"]
    config = parse_run_config([*models, *options, "--device", "cpu"])
    sources, windows, _ = sources_and_windows(config, CPU, "on")
    return config, sources, windows, read_models(sources, windows, batch_size=4, memory=1e9)


def test_the_first_pairs_of_each_text_are_what_they_are_in_the_whole(read):
    _, sources, windows, whole = read
    text = whole.notes.text_id
    _, counts = text.unique_consecutive(return_counts=True)
    number = torch.arange(len(text)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    budget = 4 * 40 + int(counts.min())
    cut = beginnings(windows, budget)
    assert cut.left_out == [
        f"All but the first 40 pairs of each of 5 texts (--most_pairs {budget}; 0 reads all)."
    ]
    assert window_numbers(cut.windows, "num_pairs").sum() == budget
    assert len(cut.windows) < len(windows)

    found = read_models(sources, cut.windows, batch_size=4, memory=1e9)
    kept = number < 40
    assert torch.equal(found.notes.text_id, text[kept])
    assert torch.equal(found.notes.end, whole.notes.end[kept])
    for name in ("kl_1_0", "kl_0_1"):
        assert torch.allclose(found.columns[name], whole.columns[name][kept], atol=1e-5)
    assert torch.allclose(found.activations[1], whole.activations[1][kept], atol=1e-5)


def test_of_too_many_texts_some_are_read(read):
    """Of the short text, which comes first here, and of the last."""
    cut = beginnings(read[2], 2 * LEAST_PAIRS)
    assert window_numbers(cut.windows, "text_id").tolist() == [0, 4, 4]
    assert "of each of 2 of 5 texts" in cut.left_out[0]


def test_all_is_read_where_it_fits_and_where_it_is_asked_for(read):
    config, _, windows, whole = read
    assert beginnings(windows, len(whole)).windows is windows
    few, everything = (run_baselines(config, CPU, BaselineConfig(most_pairs=n)) for n in (200, 0))
    assert everything.pairs == len(whole) > 200 >= few.pairs
    assert "--most_pairs 200" in few.left_out[0] and not everything.left_out
    with pytest.raises(ValueError, match="must not be negative"):
        BaselineConfig(most_pairs=-1)
