"""A list of differences beside baselines, matched by texts."""

import pytest
import torch
from scipy.stats import hypergeom

from sparsify_crosscoder import Crosscoder, CrosscoderConfig
from sparsify_crosscoder.evaluation.baselines.beside import Beside, beside, top_texts
from sparsify_crosscoder.evaluation.baselines.found import Baselines, Found
from tests.evaluation.baselines.test_directions import PAIRS, TEXTS, planted, reading_of

FIRST = [*range(10)]
OTHERS = [*range(40, 50)]


def found_with(**texts):
    """Baselines of 100 texts: KL puts them in order, directions have these texts."""
    entries = [Found(1, "text", "kl", 1, 1.0, None, "", "a", [0])]
    entries += [
        Found(1, "direction", method, 1, 0.5, None, "", "b", some) for method, some in texts.items()
    ]
    return Baselines(entries, {"kl": [*range(100)]}, 100, 500, "", [], {})


def test_an_entry_is_seen_by_what_has_its_texts_beyond_chance():
    both = beside({1: FIRST, 2: OTHERS, 3: []}, found_with(component=OTHERS), seen=5)
    first, second, nowhere = both.entries
    assert (first.also, first.method, first.median_rank) == (["kl"], "kl", 5.5)
    assert (second.also, second.common, second.median_rank) == (["component 1"], 10, 45.5)
    assert (nowhere.also, nowhere.method, nowhere.common) == ([], None, 0)
    assert first.by_chance == 50.5 and first.common_by_chance == 1.0
    assert both.only_baselines == []
    assert Beside.of_dict(both.to_dict()) == both


@pytest.mark.parametrize("common", [2, 3, 4, 5])
def test_few_common_texts_are_chance(common):
    texts = [*FIRST[:common], *range(60, 70 - common)]
    both = beside({1: texts}, found_with(component=OTHERS), seen=5)
    beyond = hypergeom.sf(common - 1, 100, 10, 10) * 2 <= 0.05
    assert bool(both.entries[0].also) == beyond
    assert ("component", 1) in both.only_baselines
    assert (("kl", 1) in both.only_baselines) == (not beyond)


def test_top_texts_are_those_in_which_a_latent_is_most_active():
    a, extra, _ = planted()
    reading = reading_of(a, a + extra)
    torch.manual_seed(0)
    one = Crosscoder([16, 16], CrosscoderConfig(num_latents=32, k=4))
    found = top_texts(one, reading, [0, 5, 31])
    code = one.encode_sparse(reading.activations)
    dense = torch.zeros(TEXTS * PAIRS, 32)
    dense[code.rows, code.indices] = code.acts.detach().float()
    largest = dense.view(TEXTS, PAIRS, 32).amax(1)
    for latent in (0, 5, 31):
        values = largest[:, latent]
        order = values.argsort(descending=True, stable=True)[:10]
        assert values[torch.tensor(found[latent], dtype=torch.long)].tolist() == [
            value for value in values[order].tolist() if value > 0
        ]
