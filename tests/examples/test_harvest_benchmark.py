"""The benchmark of harvest: that its ways do the same work, and what is made of their rates."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from sparsify_crosscoder.harvest.harvest import harvest_windows
from sparsify_crosscoder.harvest.placement import Placement
from sparsify_crosscoder.harvest.sources import load_language_model, load_sources
from sparsify_crosscoder.store.store import ActivationStore
from sparsify_crosscoder.store.store_stream import StoreStream
from tests.support.models import save_tiny_model
from tests.support.tokenizers import byte_level_tokenizer, metaspace_tokenizer
from tests.support.windows import random_windows

ROOT = Path(__file__).parents[2]
benchmark = importlib.import_module("harvest")
store_dtypes = importlib.import_module("store_dtypes")
store_reading = importlib.import_module("store_reading")


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_tiny_model(folder / "llama", "llama", byte_level_tokenizer(), width=24)
    save_tiny_model(folder / "gemma3", "gemma3", metaspace_tokenizer(), width=32)
    return [str(folder / "llama"), str(folder / "gemma3")]


@pytest.fixture(scope="module")
def sources(names):
    return load_sources(
        names, hookpoints=["layers.1", "layers.2"], placement=Placement("cpu"), dtype="float32"
    )


@pytest.fixture(scope="module")
def whole(names):
    return [load_language_model(name, device="cpu", dtype="float32")[0] for name in names]


@pytest.fixture
def windows():
    return random_windows(11)


@pytest.fixture(scope="module")
def exact(sources, tmp_path_factory):
    path = tmp_path_factory.mktemp("exact") / "store"
    return ActivationStore.create(
        path, sources, random_windows(40), batch_size=8, dtype="float32", shard_pairs=100
    )


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
    assert measured["found"].keys() < benchmark.AT_LEAST.keys()
    assert measured["found"]["cosine with full forwards"] > 0.999
    assert all(0 <= share < 2 for padded in measured["padded"].values() for share in padded)
    report = {"processor": "one", "versions": {"torch": "2"}, "dtype": "float32", "threads": 1}
    parts = {"harvest": measured}
    report |= {"parts": parts, "claims": benchmark.judge(parts)}
    shown = benchmark.show(json.loads(json.dumps(report)))
    assert "| full forwards " in shown and "harvest to forwards alone" in shown


def num_hooks(model) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_public_code_at_its_best_finds_the_same_and_is_measured_beside_a_harvest(
    sources, whole, windows, tmp_path
):
    harvested, origin = harvest_windows(sources, windows, range(11), batch_size=4)
    for s, source in enumerate(sources):
        order = sorted(range(11), key=lambda i: len(windows[i][f"input_ids_{s}"]))
        expected = torch.cat([harvested[s][origin[:, 0] == i] for i in order])
        options = (source.model, source.hookpoint, windows, s, 4)
        before = num_hooks(source.model)  # transformers leaves some of its own
        found = benchmark.by_hook(*options)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert num_hooks(source.model) == before
        found = benchmark.by_nnsight(*options)()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    measured = benchmark.measure_forwards(sources, whole, windows, tmp_path, rounds=2)
    assert list(measured["rates"]) == [
        "harvest",
        "forwards alone",
        "hook, stopped",
        "nnsight, stopped",
        "full forwards",
    ]
    assert {len(rates) for rates in measured["rates"].values()} == {2}
    assert measured["fixed_seconds"]["store"] > 0
    assert measured["found"].keys() < benchmark.AT_LEAST.keys()
    shown = "\n".join(benchmark.harvest_table(json.loads(json.dumps(measured))))
    assert "| nnsight, stopped " in shown and "2 worker(s): " in shown


def test_a_ratio_is_the_median_over_the_rounds():
    rates = {"a": [10.0, 30.0, 20.0], "b": [5.0, 10.0, 20.0]}
    assert benchmark.ratio(rates, "a", "b") == 2.0
    assert benchmark.ratio(rates, "b", "a") == 0.5


def test_claims_hold_up_to_their_bounds():
    found = benchmark.AT_LEAST | benchmark.AT_MOST
    assert all(claim["holds"] for claim in benchmark.judge({"any": {"found": found}}))
    found["harvest to forwards alone"] -= 0.01
    found["int8's cost in held-out FVE"] += 0.001
    judged = benchmark.judge({"any": {"found": found}})
    failed = [claim["claim"] for claim in judged if not claim["holds"]]
    assert failed == ["harvest to forwards alone", "int8's cost in held-out FVE"]
    assert all(claim["holds"] for claim in benchmark.judge({"any": {"found": found}}, quick=True))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8"])
def test_a_store_written_again_is_one_that_can_be_verified(exact, dtype, tmp_path):
    again = store_dtypes.encode_again(exact, tmp_path / "s", dtype, copies=3, shard_pairs=100)
    again.verify()
    assert len(again) == 3 * len(exact) and again.dtype == dtype and again.num_shards > 3
    assert len(set(again.windows["text_id"])) == 3 * len(set(exact.windows["text_id"]))
    numbers = torch.arange(len(again))
    expected = exact.rows(numbers % len(exact))
    for x, x_again in zip(expected, again.rows(numbers), strict=True):
        torch.testing.assert_close(x_again.float(), x, rtol=0.01, atol=0.05)


def test_errors_are_shares_of_the_variance_and_none_in_float32(exact, tmp_path):
    def errors(dtype):
        stored = store_dtypes.encode_again(exact, tmp_path / dtype, dtype)
        return store_dtypes.stored_errors(stored, exact)

    assert all(one == 0 for found in errors("float32").values() for one in found)
    int8, bfloat16 = errors("int8"), errors("bfloat16")
    for s in range(2):
        assert 1e-6 < bfloat16["pooled"][s] < 1e-4
        assert 1e-6 < int8["median"][s] <= int8["worst"][s] < 1e-3


def test_all_ways_of_reading_are_measured_beside_training(exact, tmp_path):
    stores = {
        dtype: store_dtypes.encode_again(exact, tmp_path / dtype, dtype, copies=8)
        for dtype in ("bfloat16", "int8")
    }
    assert len(exact) * 8 > store_reading.BATCH
    measured = store_reading.measure_reading(stores, tmp_path, rounds=2, steps=2)
    assert len(measured["rates"]) == 1 + 2 * (1 + 2 * 2)
    assert {len(rates) for rates in measured["rates"].values()} == {2}
    assert measured["found"].keys() < benchmark.AT_LEAST.keys()
    shown = "\n".join(store_reading.reading_table(json.loads(json.dumps(measured))))
    assert "| trainer " in shown and "| int8, pair by pair, second epoch " in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("regime", store_reading.REGIMES)
def test_two_epochs_of_a_store_opened_anew_are_read(exact, regime, monkeypatch):
    read = []
    rows = StoreStream._read
    monkeypatch.setattr(StoreStream, "_read", lambda *args: read.append(args) or rows(*args))
    monkeypatch.setattr(store_reading, "BATCH", 32)
    took = store_reading.read_epochs(exact.path, store_reading.REGIMES[regime])
    steps = len(exact) // 32
    assert [one.pairs for one in took] == [steps * 32] * 2
    assert [args[1:] for args in read] == [(32 * i, 32 * i + 32) for i in range(2 * steps)]
    stream = read[0][0]
    assert stream._epochs.whole == (regime == "pair by pair")
    assert sum(int(blocks.sum()) for blocks in stream.store._checked) > 1


def test_what_training_on_each_dtype_costs_is_measured_on_exact_activations(exact, tmp_path):
    measured = store_dtypes.measure_dtypes(
        exact,
        tmp_path,
        steps=8,
        seeds=(0, 1),
        held_out_pairs=100,
        num_latents=128,
        pairs_per_step=64,
        k=8,
    )
    assert list(measured["runs"]) == ["float32", "bfloat16", "float16", "int8"]
    assert 100 <= measured["held_out_pairs"] < len(exact)
    assert measured["found"].keys() == benchmark.AT_MOST.keys()
    assert all(cost == 0 for cost in store_dtypes.costs(measured, "float32")["fve"])
    fves = [run["fve"] for run in measured["runs"]["float32"]]
    assert len(set(fves)) == 2
    assert all(abs(cost) < 0.05 for cost in store_dtypes.costs(measured, "int8")["fve"])
    sizes = measured["bytes_per_pair"]
    assert sizes["float16"] == pytest.approx(sizes["bfloat16"], rel=1e-3)
    assert sizes["int8"] < sizes["bfloat16"] < sizes["float32"]
    shown = "\n".join(store_dtypes.dtypes_tables(json.loads(json.dumps(measured))))
    assert "| int8 " in shown and "8 steps, 2 seed(s)" in shown


def test_a_dtype_that_cannot_hold_the_activations_is_said_to(exact, tmp_path, monkeypatch):
    rows = ActivationStore.rows
    monkeypatch.setattr(
        ActivationStore, "rows", lambda self, index: [x * 1e6 for x in rows(self, index)]
    )
    with pytest.raises(ValueError, match="too large for float16"):
        store_dtypes.encode_again(exact, tmp_path / "s", "float16")


def test_without_the_demos_models_it_says_what_leaves_some(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["harvest.py", "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match="`make demo` leaves some"):
        benchmark.main()
