"""Baselines of two models, against what whole forwards and dense arithmetic give."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparsify_crosscoder.evaluation.baselines.coder import CoderConfig
from sparsify_crosscoder.evaluation.baselines.comparing import (
    BaselineConfig,
    baselines_of_store,
    run_baselines,
)
from sparsify_crosscoder.evaluation.baselines.found import METHODS, Baselines
from sparsify_crosscoder.runs.options import parse_run_config
from sparsify_crosscoder.runs.pairs import harvest_run
from sparsify_crosscoder.runs.texts import load_run_texts
from sparsify_crosscoder.store.store import ActivationStore
from tests.support.adapters import save_adapter
from tests.support.models import save_tiny_model, save_twins
from tests.support.tokenizers import SENTENCES, metaspace_tokenizer

CPU = torch.device("cpu")
QUICK = BaselineConfig(coder=CoderConfig(latents=8, k=2, steps=5, pairs_per_step=32))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("baselines")
    save_twins(folder)
    shutil.copytree(folder / "base", folder / "copy")
    save_tiny_model(folder / "pieces", "gemma3", metaspace_tokenizer(), width=16)
    lines = [line for line in SENTENCES if "\n" not in line]
    (folder / "texts.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def config_of(place, first, second, *options):
    models = [str(place / first), str(place / "texts.txt"), "--partners", str(place / second)]
    return parse_run_config([*models, "--model_dtype", "float32", "--device", "cpu", *options])


def found_of(place, first, second, *options, settings=QUICK):
    return run_baselines(config_of(place, first, second, *options), CPU, settings)


@pytest.fixture(scope="module")
def tuned(place):
    return found_of(place, "base", "tuned")


def test_of_a_model_and_itself_every_baseline_is_exactly_zero(place):
    for twin in ("base", "copy"):
        found = found_of(place, "base", twin)
        assert found.entries == []
        assert {*found.orders} == {"kl", "likelihood", "perplexity", "activation"}
        assert "every one is exactly 0" in found.text(["a", "b"])


def test_every_method_ranks_from_the_first_on_and_keeps_its_entries_as_json(tuned):
    assert {one.method for one in tuned.entries} == {*METHODS}
    for method in METHODS:
        rows = tuned.of(method)
        assert [one.rank for one in rows] == [*range(1, len(rows) + 1)]
        assert all(one.interval is None or one.interval[0] <= one.interval[1] for one in rows)
        if method not in ("coder", "first", "mean"):
            assert [one.score for one in rows] == sorted((one.score for one in rows), reverse=True)
    for order in tuned.orders.values():
        assert sorted(order) == [*range(tuned.texts)]
    assert Baselines.of_dict(json.loads(json.dumps(tuned.to_dict()))) == tuned
    assert "' the'" in tuned.text(["base", "tuned"], shown=20)


@torch.no_grad()
def test_perplexity_is_the_difference_in_nats_a_byte(place, tuned):
    best = tuned.of("perplexity")[0]
    text = load_run_texts(config_of(place, "base", "tuned"))["text"][best.texts[0]]
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    likelihoods = []
    for name in ("base", "tuned"):
        model = AutoModelForCausalLM.from_pretrained(place / name, dtype=torch.float32)
        logs = model(ids).logits[0, :-1].log_softmax(-1)
        # The first pair is the second token: a window's first is in no pair.
        likelihoods.append(float(logs.gather(1, ids[0, 1:, None])[1:].sum()))
    read = len(text.encode()) - len(tokenizer.decode(ids[0, :2]).encode())
    difference = (likelihoods[1] - likelihoods[0]) / read
    assert best.score == pytest.approx(abs(difference), rel=1e-4)
    assert best.source == (difference > 0)


@torch.no_grad()
def test_tokens_are_those_of_the_mean_distributions(place, tuned):
    texts = load_run_texts(config_of(place, "base", "tuned"))["text"]
    tokenizer = AutoTokenizer.from_pretrained(place / "base")
    sums = []
    for name in ("base", "tuned"):
        model = AutoModelForCausalLM.from_pretrained(place / name, dtype=torch.float32)
        parts = [model(tokenizer(t, return_tensors="pt")["input_ids"]).logits[0] for t in texts]
        read = [part[1:].double().softmax(-1) for part in parts]  # the last token's next as well
        white = [torch.tensor(_paired(tokenizer, text))[1:] for text in texts]
        sums.append([p[kept] for p, kept in zip(read, white, strict=True)])
    p0, p1 = (torch.cat(parts).mean(0) for parts in sums)
    scores = (p1 - p0) * (p1 / p0).log()
    first = tuned.of("token")[0]
    assert first.score == pytest.approx(float(scores.max()), rel=1e-3)
    assert repr(tokenizer.decode([int(scores.argmax())])) in first.said
    assert first.source == int(p1[scores.argmax()] > p0[scores.argmax()])
    # The interval: the score with each text left out in turn, about its mean.
    total0, total1 = (torch.stack([p.sum(0) for p in parts]) for parts in sums)
    counts = torch.tensor([len(p) for p in sums[0]]).double()
    place = int(scores.argmax())
    left0, left1 = (
        (t[:, place].sum() - t[:, place]) / (counts.sum() - counts) for t in (total0, total1)
    )
    without = (left1 - left0) * (left1 / left0).log()
    size = len(counts)
    jackknife = ((size - 1) / size * (without - without.mean()).square().sum()).sqrt()
    assert first.interval is not None
    assert first.interval[1] - first.score == pytest.approx(1.96 * float(jackknife), rel=0.35)


def _paired(tokenizer, text):
    """Which tokens of a text are somebody's words: those that are not white space alone."""
    return [bool(tokenizer.decode([id]).strip()) for id in tokenizer(text)["input_ids"]]


def test_swapping_the_models_turns_what_has_a_side_and_nothing_else(place, tuned):
    back = found_of(place, "tuned", "base")
    assert back.orders["likelihood"] == tuned.orders["likelihood"]
    for method in ("likelihood", "perplexity", "token"):
        mine, theirs = tuned.of(method), back.of(method)
        assert [one.score for one in mine] == pytest.approx([one.score for one in theirs])
        if method != "likelihood":
            assert [one.source for one in mine] == [1 - one.source for one in theirs]


def test_of_other_tokenizers_and_widths_all_is_known_but_the_mean(place):
    found = found_of(place, "base", "pieces")
    assert {one.method for one in found.entries} == {*METHODS} - {"mean"}
    assert found.left_out == [] and "a linear map" in found.compared
    back = found_of(place, "pieces", "base")
    assert back.orders["likelihood"] == found.orders["likelihood"]
    mine, theirs = ([(t.said, t.score) for t in one.of("token")] for one in (found, back))
    assert [said for said, _ in mine][:3] == [said for said, _ in theirs][:3]
    assert [s for _, s in mine] == pytest.approx([s for _, s in theirs], rel=1e-3)


def test_an_adapter_is_compared_with_its_base(place, capsys):
    save_adapter(place / "adapter", place / "base")
    found = found_of(place, "base", "adapter")
    assert "its base is loaded once" in capsys.readouterr().err
    assert {one.method for one in found.entries} >= {*METHODS} - {"mean"}


def test_without_heads_activations_are_compared(place, tuned):
    found = found_of(place, "base", "tuned", "--kl", "off")
    assert {*found.orders} == {"activation"} and not found.of("token")
    assert found.orders["activation"] == tuned.orders["activation"]
    assert "without their heads" in found.left_out[0]


def test_no_more_activations_are_held_than_asked(place, tuned):
    few = replace(QUICK, memory=40 * 2 * 24 * 4)
    found = found_of(place, "base", "tuned", settings=few)
    assert found.pairs == tuned.pairs > 40
    assert found.of("kl") == tuned.of("kl") and found.of("token") == tuned.of("token")
    assert len(found.orders["activation"]) < found.texts + 1
    assert found.of("activation") != tuned.of("activation")


def test_a_store_says_the_same_but_for_single_tokens(place, tuned):
    config = config_of(
        place, "base", "tuned", "--cache", str(place / "store"), "--dtype", "float32"
    )
    harvest_run(config, CPU)
    store = ActivationStore.open(place / "store")
    found = baselines_of_store(store, load_run_texts(config), QUICK)
    assert not found.of("token") and "a store keeps none" in found.left_out[0]
    assert found.orders == tuned.orders
    for method in ("kl", "likelihood", "perplexity", "activation", "component"):
        mine, right = ([one.score for one in some.of(method)] for some in (found, tuned))
        assert np.allclose(mine, right, rtol=1e-4, atol=1e-6), method


def test_three_models_are_refused(place):
    config = config_of(place, "base", "tuned")
    config.partners.append(str(place / "copy"))
    with pytest.raises(ValueError, match="of two models, not of 3"):
        run_baselines(config, CPU)
