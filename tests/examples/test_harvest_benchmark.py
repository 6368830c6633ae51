"""The benchmark of harvest: that its ways do the same work, and what is made of their rates."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from models_for_tests import save_tiny_model
from tokenizers_for_tests import byte_level_tokenizer, metaspace_tokenizer
from windows_for_tests import random_windows

from sparsify_crosscoder.activations.harvest import harvest_windows
from sparsify_crosscoder.activations.sources import load_language_model, load_sources

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "examples" / "benchmarks"))
benchmark = importlib.import_module("harvest")


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_tiny_model(folder / "llama", "llama", byte_level_tokenizer(), width=24)
    save_tiny_model(folder / "gemma3", "gemma3", metaspace_tokenizer(), width=32)
    return [str(folder / "llama"), str(folder / "gemma3")]


@pytest.fixture(scope="module")
def sources(names):
    return load_sources(names, hookpoints=["layers.1", "layers.2"], device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def whole(names):
    return [load_language_model(name, device="cpu", dtype="float32")[0] for name in names]


@pytest.fixture
def windows():
    return random_windows(11)


def test_full_forwards_find_what_a_harvest_finds(sources, whole, windows):
    harvested, _ = harvest_windows(sources, windows, range(11), batch_size=4)
    for s, model in enumerate(whole):
        found = benchmark.full_forwards(model, sources[s].hookpoint, windows, s, batch_size=4)
        torch.testing.assert_close(found, harvested[s], rtol=1e-4, atol=1e-4)
        assert not any(module._forward_hooks for module in model.modules())


def test_the_recorded_batches_are_all_windows_of_each_source(sources, windows):
    recorded = benchmark.recorded_batches(sources, windows, 4)
    for s, batches in enumerate(recorded):
        rows = [row for inputs in batches for row in inputs["input_ids"].tolist()]
        wanted = sorted(windows[f"input_ids_{s}"], key=len)
        assert [row[: len(own)] for row, own in zip(rows, wanted, strict=True)] == wanted
        assert not sources[s].model._forward_pre_hooks


def test_forwards_alone_end_with_the_hookpoint_and_give_its_activations(sources, windows):
    recorded = benchmark.recorded_batches(sources, windows, 16)
    for source, batches in zip(sources, recorded, strict=True):
        layers, norm = source.model.layers, source.model.norm
        with torch.no_grad():
            inputs = batches[0]
            expected = source.model(**inputs, output_hidden_states=True).hidden_states
            with benchmark.cut_behind(source):
                assert len(source.model.layers) == int(source.hookpoint[-1]) + 1
                ended = source.model(**inputs).last_hidden_state
        assert source.model.layers is layers and source.model.norm is norm
        torch.testing.assert_close(ended, expected[len(layers[: int(source.hookpoint[-1]) + 1])])


@pytest.mark.parametrize("threads", [1, 2])
def test_all_ways_are_measured_on_the_same_pairs(threads, sources, whole, windows, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        measured = benchmark.measure_harvest(sources, whole, windows, tmp_path, rounds=2)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert measured["pairs"] == sum(windows["num_pairs"])
    assert {way: len(rates) for way, rates in measured["rates"].items()} == dict.fromkeys(
        ("harvest", "forwards alone", "full forwards"), 2
    )
    assert measured["found"].keys() == benchmark.CLAIMS.keys()
    assert measured["found"]["cosine with full forwards"] > 0.999
    assert all(0 <= share < 2 for padded in measured["padded"].values() for share in padded)
    report = {"processor": "one", "versions": {"torch": "2"}, "dtype": "float32", "threads": 1}
    parts = {"harvest": measured}
    report |= {"parts": parts, "claims": benchmark.judge(parts)}
    shown = benchmark.show(json.loads(json.dumps(report)))
    assert "| full forwards " in shown and "harvest to forwards alone" in shown


def test_a_ratio_is_the_median_over_the_rounds():
    rates = {"a": [10.0, 30.0, 20.0], "b": [5.0, 10.0, 20.0]}
    assert benchmark.ratio(rates, "a", "b") == 2.0
    assert benchmark.ratio(rates, "b", "a") == 0.5


def test_claims_hold_from_their_least_value_on():
    found = dict(benchmark.CLAIMS)
    assert all(claim["holds"] for claim in benchmark.judge({"any": {"found": found}}))
    found["harvest to forwards alone"] -= 0.01
    judged = benchmark.judge({"any": {"found": found}})
    assert [claim["holds"] for claim in judged] == [False, True, True]
    assert all(claim["holds"] for claim in benchmark.judge({"any": {"found": found}}, quick=True))


def test_without_the_demos_models_it_says_what_leaves_some(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["harvest.py", "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match="`make demo` leaves some"):
        benchmark.main()
