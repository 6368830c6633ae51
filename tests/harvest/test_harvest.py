import threading
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import dispatch_model

from sparsify_crosscoder.harvest import lanes as lanes_module
from sparsify_crosscoder.harvest import workers
from sparsify_crosscoder.harvest.forwards import Kept
from sparsify_crosscoder.harvest.harvest import harvest_windows, run_harvest
from sparsify_crosscoder.harvest.hookpoints import layer_list, try_hookpoint
from sparsify_crosscoder.harvest.lanes import lanes_of, most_workers, reading_of
from sparsify_crosscoder.harvest.report import HarvestReport
from sparsify_crosscoder.harvest.source import Source
from tests.support.models import KINDS, tiny_model
from tests.support.windows import random_windows


def source(model, layer=1, hookpoint=None, name="tiny"):
    hookpoint = hookpoint or f"{layer_list(model)[0]}.{layer}"
    return Source(name, hookpoint, model, None, try_hookpoint(model, hookpoint).shape[2])


@pytest.fixture
def two_sources():
    return [source(tiny_model("llama"), name="A"), source(tiny_model("gpt2", width=24), name="B")]


def layers(model):
    return model.get_submodule(layer_list(model)[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [0, 2])
def test_activations_are_the_layers_hidden_states_at_the_pairs(kind, layer):
    model = tiny_model(kind)
    windows = random_windows(10)
    harvested, origin = harvest_windows(
        [source(model, layer), source(tiny_model("llama"))], windows, range(10), batch_size=4
    )
    expected = []
    for window in windows:
        with torch.no_grad():
            ids = torch.tensor([window["input_ids_0"]])
            states = model(ids, output_hidden_states=True).hidden_states
        expected.append(states[layer + 1][0, window["pairs_0"]])
    torch.testing.assert_close(harvested[0], torch.cat(expected), rtol=1e-4, atol=1e-4)
    assert origin.tolist() == [
        [w, p] for w, count in enumerate(windows["num_pairs"]) for p in range(count)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_layer_is_read_before_the_final_norm(kind):
    model = tiny_model(kind)
    windows = random_windows(3)
    harvested, _ = harvest_windows([source(model, 3)] * 2, windows, [1], batch_size=4)
    final_norm = model.ln_f if kind == "gpt2" else model.norm
    with torch.no_grad():
        last = model(torch.tensor([windows[1]["input_ids_0"]])).last_hidden_state[0]
        normed = final_norm(harvested[0])
    torch.testing.assert_close(normed, last[windows[1]["pairs_0"]], rtol=1e-4, atol=1e-4)


class NeverRun(torch.nn.Module):
    def __init__(self, replaced):
        super().__init__()
        self.attention_type = getattr(replaced, "attention_type", None)

    def forward(self, *args, **kwargs):
        raise AssertionError("a layer behind the hookpoint was run")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_behind_the_hookpoint_is_run(kind):
    model = tiny_model(kind)
    sources = [source(model, 1), source(model, 1)]
    windows = random_windows(4, same_tokens=True)
    whole, _ = harvest_windows(sources, windows, range(4), batch_size=2, stop_early=False)
    for later in (2, 3):
        layers(model)[later] = NeverRun(layers(model)[later])
    setattr(model, "ln_f" if kind == "gpt2" else "norm", NeverRun(None))
    stopped, _ = harvest_windows(sources, windows, range(4), batch_size=2)
    assert torch.equal(stopped[0], whole[0])
    with pytest.raises(AssertionError, match="behind the hookpoint"):
        harvest_windows(sources, windows, range(4), batch_size=2, stop_early=False)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_change_a_window(kind):
    windows = random_windows(8)
    sources = [source(tiny_model(kind), 2), source(tiny_model(kind, seed=1), 2)]
    alone, _ = harvest_windows(sources, windows, range(8), batch_size=1)
    padded, _ = harvest_windows(sources, windows, range(8), batch_size=8)
    for a, b in zip(alone, padded, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_causal_model_reads_padded_windows_without_a_mask(kind):
    windows = random_windows(8, same_tokens=True)
    masked = source(tiny_model(kind), 2)
    causal = replace(masked, causal=True)
    masks = []
    causal.model.register_forward_pre_hook(
        lambda module, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    without, _ = harvest_windows([causal] * 2, windows, range(8), batch_size=8)
    with_mask, _ = harvest_windows([causal, masked], windows, range(8), batch_size=8)
    assert masks[0] is None and masks[1] is not None and not masks[1].all()
    torch.testing.assert_close(without[0], with_mask[0], rtol=1e-5, atol=1e-5)


def test_pairs_come_in_the_order_of_the_rows_asked_for(two_sources):
    windows = random_windows(8)
    everything, all_origins = harvest_windows(two_sources, windows, range(8), batch_size=3)
    some, origins = harvest_windows(two_sources, windows, [6, 0, 3], batch_size=3)
    counts = windows["num_pairs"]
    assert origins[:, 0].tolist() == [6] * counts[6] + [0] * counts[0] + [3] * counts[3]
    index = [all_origins.tolist().index(origin) for origin in origins.tolist()]
    for found, whole in zip(some, everything, strict=True):
        torch.testing.assert_close(found, whole[index], rtol=1e-4, atol=1e-4)


def test_a_hookpoint_whose_module_returns_a_tuple_gives_its_first_member():
    model = tiny_model("llama")
    windows = random_windows(2)
    outputs = []
    hook = model.layers[1].self_attn.register_forward_hook(
        lambda module, args, output: outputs.append(output)
    )
    with torch.no_grad():
        model(torch.tensor([windows[0]["input_ids_0"]]))
    hook.remove()
    assert isinstance(outputs[0], tuple)
    sources = [source(model, hookpoint="layers.1.self_attn"), source(model)]
    harvested, _ = harvest_windows(sources, windows, [0], batch_size=1)
    torch.testing.assert_close(harvested[0], outputs[0][0][0, windows[0]["pairs_0"]])


def count_forwards(model):
    seen = []
    layers(model)[0].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    return seen


def test_sources_that_share_model_and_tokens_share_one_forward():
    model = tiny_model("qwen3")
    windows = random_windows(6, sources=3, same_tokens=True)
    sources = [source(model, 2), source(model, 0), source(model, 2)]
    apart = [harvest_windows([s, s], windows, range(6), batch_size=2)[0][0] for s in sources]
    forwards = count_forwards(model)
    together, _ = harvest_windows(sources, windows, range(6), batch_size=2)
    assert len(forwards) == 3
    for one, other in zip(together, apart, strict=True):
        assert torch.equal(one, other)


def test_one_model_reads_two_tokenisations_one_after_the_other():
    model = tiny_model("qwen3")
    windows = random_windows(6)
    sources = [source(model, 1), source(model, 1)]
    forwards = count_forwards(model)
    harvested, _ = harvest_windows(sources, windows, range(6), batch_size=2)
    assert len(forwards) == 6
    swapped = windows.rename_columns(
        {"input_ids_0": "input_ids_1", "pairs_0": "pairs_1"}
        | {"input_ids_1": "input_ids_0", "pairs_1": "pairs_0"}
    )
    other, _ = harvest_windows([source(model, 1)] * 2, swapped, range(6), batch_size=2)
    assert torch.equal(harvested[0], other[1])
    assert torch.equal(harvested[1], other[0])


def test_the_same_harvest_gives_the_same_bits_in_bfloat16():
    sources = [source(tiny_model(kind).bfloat16(), 2) for kind in ("llama", "gemma3", "gpt_oss")]
    windows = random_windows(30, sources=3)
    first, _ = harvest_windows(sources, windows, range(30), batch_size=4)
    for _ in range(3):
        again, _ = harvest_windows(sources, windows, range(30), batch_size=4)
        for a, b in zip(first, again, strict=True):
            assert a.dtype == torch.bfloat16
            assert torch.equal(a, b)


@contextmanager
def threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_threads_are_as_before_afterwards(two_sources):
    with threads(2):
        harvest_windows(two_sources, random_windows(2), [0, 1], batch_size=2)
        assert torch.get_num_threads() == 2


def note_threads(sources):
    """Which thread runs each source's model, and with how many threads for its products."""
    seen = [set() for _ in sources]
    for source_, own in zip(sources, seen, strict=True):
        source_.model.register_forward_pre_hook(
            lambda module, args, own=own: own.add(
                (threading.current_thread().name, torch.get_num_threads())
            )
        )
    return seen


def test_models_on_the_cpu_take_turns_where_there_is_one_thread(two_sources):
    windows = random_windows(6)
    with threads(2):
        side_by_side, _ = harvest_windows(two_sources, windows, range(6), batch_size=2)
    seen = note_threads(two_sources)
    with threads(1):
        in_turn, _ = harvest_windows(two_sources, windows, range(6), batch_size=2)
    assert seen == [{(threading.current_thread().name, 1)}] * 2
    assert all(torch.equal(a, b) for a, b in zip(side_by_side, in_turn, strict=True))


def test_no_more_models_run_side_by_side_on_the_cpu_than_there_are_threads():
    sources = [source(tiny_model("llama", seed=seed)) for seed in range(3)]
    windows = random_windows(6, sources=3)
    seen = note_threads(sources)
    with threads(2):
        harvest_windows(sources, windows, range(6), batch_size=2)
    assert all(len(own) == 1 for own in seen)
    assert len(set.union(*seen)) <= 2 and {number for own in seen for _, number in own} == {1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [True, False])
def test_workers_share_a_model_and_change_no_bit(shared, dtype, monkeypatch):
    monkeypatch.setattr(workers, "WORTH_HELP", 64)
    model = tiny_model("qwen3").to(dtype)
    other = model if shared else tiny_model("gpt2", width=24).to(dtype)
    sources = [source(model, 1), source(other, 1)]
    windows = random_windows(60, max_tokens=100, same_tokens=shared)
    with threads(1):
        expected, origin = harvest_windows(sources, windows, range(60), batch_size=3)
    seen = note_threads(sources)
    hooks = [len(module._forward_hooks) for module in model.modules()]
    for number in (2, 3):
        with threads(number):
            found, again = harvest_windows(sources, windows, range(60), batch_size=3)
        assert torch.equal(again, origin)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert {count for own in seen for _, count in own} == {1}
    assert max(len(own) for own in seen) > 1
    assert [len(module._forward_hooks) for module in model.modules()] == hooks


def test_a_model_of_which_no_copy_can_be_made_is_read_by_one_worker(monkeypatch):
    monkeypatch.setattr(workers, "WORTH_HELP", 16)
    model = tiny_model("llama")
    model.lock = threading.Lock()
    windows = random_windows(20, same_tokens=True)
    seen = note_threads([source(model)])
    with threads(2):
        harvest_windows([source(model)] * 2, windows, range(20), batch_size=2)
    assert len(seen[0]) == 1


def test_a_copy_shares_weights_and_nothing_that_a_forward_changes(tmp_path):
    model = tiny_model("gemma3")
    twin = workers.copy_of(model)
    assert twin is not None
    pairs = zip(model.parameters(), twin.parameters(), strict=True)
    assert all(a is b for a, b in pairs)
    layers(twin)[0].register_forward_hook(lambda *args: None)
    assert not layers(model)[0]._forward_hooks
    assert workers.copy_of(offloaded(tiny_model("llama"), tmp_path)) is None


def test_as_many_workers_as_memory_has_room_for(two_sources, monkeypatch):
    windows = random_windows(4)[:]
    counts = np.array(windows["num_pairs"])
    lanes = [[reading_of(two_sources, [s], windows, counts, batch_size=4)] for s in range(2)]
    with threads(3):
        assert most_workers(lanes) == 3
        monkeypatch.setattr(lanes_module, "available_memory", lambda: 0)
        assert most_workers(lanes) == 1


@pytest.mark.parametrize("number", [1, 2])
def test_a_pair_counts_once_all_models_have_read_it(number, monkeypatch):
    monkeypatch.setattr(workers, "WORTH_HELP", 64)
    sources = [source(tiny_model("llama", seed=seed)) for seed in range(3)]
    windows = random_windows(40, sources=3)
    read, told = [0, 0, 0], []
    put = Kept.put

    def counted(kept, destination, rows):
        put(kept, destination, rows)
        read[next(s for s, x in enumerate(every) if x is kept.activations)] += len(destination)

    every = []
    empty = Kept.empty.__func__

    def noted(cls, *args):
        kept = empty(cls, *args)
        every.append(kept.activations)
        return kept

    monkeypatch.setattr(Kept, "put", counted)
    monkeypatch.setattr(Kept, "empty", classmethod(noted))

    def progress(pairs):
        told.append(pairs)
        assert sum(told) <= min(read)

    with threads(number):
        report = run_harvest(sources, windows, range(40), batch_size=2, progress=progress).report
    assert sum(told) == report.pairs
    # The models take turns: a model at a time would tell of no pair before two of them were done.
    assert sum(told[: len(told) // 2]) > 0.05 * report.pairs


def test_results_are_ordinary_tensors_that_training_can_use(two_sources):
    harvested, _ = harvest_windows(two_sources, random_windows(3), range(3), batch_size=2)
    for x in harvested:
        weight = torch.ones(x.shape[1], 2, requires_grad=True)
        (x @ weight).square().sum().backward()
        assert weight.grad is not None
        assert not x.requires_grad
        x[0] = 0


def test_autocast_around_a_harvest_does_not_reach_the_models():
    sources = [source(tiny_model("llama"))] * 2
    windows = random_windows(3, same_tokens=True)
    plain, _ = harvest_windows(sources, windows, range(3), batch_size=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, _ = harvest_windows(sources, windows, range(3), batch_size=2)
    assert torch.equal(plain[0], inside[0])


def test_no_rows_give_empty_tensors(two_sources):
    harvested, origin = harvest_windows(two_sources, random_windows(3), [], batch_size=2)
    assert [x.shape for x in harvested] == [(0, 32), (0, 24)]
    assert origin.shape == (0, 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused_with_source_hookpoint_and_text(two_sources, value):
    windows = random_windows(6, vocab_size=100)
    ids = [list(row) for row in windows["input_ids_1"]]
    ids[4][0] = 120  # a token of its own; every later position attends to it
    windows = windows.remove_columns("input_ids_1").add_column("input_ids_1", ids)
    two_sources[1].model.wte.weight[120] = value
    with pytest.raises(ValueError, match=r"B gives NaN or inf.* h\.1 for .* first in text 102"):
        harvest_windows(two_sources, windows, range(6), batch_size=1)
    harvested, _ = harvest_windows(two_sources, windows, [0, 1, 2, 3, 5], batch_size=2)
    assert harvested[1].isfinite().all()


def test_an_error_inside_one_model_surfaces_and_leaves_no_hooks(two_sources):
    layers(two_sources[1].model)[0] = NeverRun(None)
    with pytest.raises(AssertionError, match="behind the hookpoint"):
        harvest_windows(two_sources, random_windows(4), range(4), batch_size=1)
    for s in two_sources:
        assert not any(module._forward_hooks for module in s.model.modules())


def test_a_batch_of_no_windows_is_refused(two_sources):
    with pytest.raises(ValueError, match="batch_size counts windows"):
        harvest_windows(two_sources, random_windows(2), [0], batch_size=0)


def test_the_report_counts_windows_pairs_and_tokens(two_sources):
    windows = random_windows(5)
    seen = []
    report = run_harvest(two_sources, windows, [1, 3], batch_size=1, progress=seen.append).report
    chosen = windows.select([1, 3])
    assert report.windows == 2
    assert report.pairs == sum(chosen["num_pairs"]) == sum(seen)
    assert report.tokens == [
        sum(map(len, chosen["input_ids_0"])),
        sum(map(len, chosen["input_ids_1"])),
    ]
    assert report.seconds > 0


def test_reports_add_up():
    total = HarvestReport(1, 10, [20, 40], 2.0) + HarvestReport(2, 30, [30, 40], 6.0)
    assert total.to_dict() == {
        "windows": 3,
        "pairs": 40,
        "tokens": [50, 80],
        "seconds": 8.0,
        "pairs_per_second": 5.0,
    }
    assert HarvestReport() + total == total == total + HarvestReport()
    with pytest.raises(ValueError, match="different numbers of sources"):
        total + HarvestReport(tokens=[1, 2, 3])


@pytest.mark.parametrize(
    "devices, lanes",
    [
        (["cuda:0", "cuda:1", "cuda:2"], [[[0]], [[1]], [[2]]]),
        (["cuda:0", "cuda:1", "cuda:0"], [[[1]], [[0], [2]]]),
        (["cuda:0", "cuda:1", "cuda:0 cuda:1"], [[[0], [1], [2]]]),
        (["cuda:0 cpu", "cpu", "cuda:1"], [[[1]], [[0]], [[2]]]),
        (["cpu", "cpu", "cpu"], [[[0], [2]], [[1]]]),
    ],
)
def test_models_that_share_an_accelerator_take_turns(devices, lanes, monkeypatch):
    sources = [source(tiny_model("llama")) for _ in devices]
    places = {
        id(s.model): {torch.device(one) for one in own.split()}
        for s, own in zip(sources, devices, strict=True)
    }
    monkeypatch.setattr(lanes_module, "execution_devices", lambda model: places[id(model)])
    with threads(2):
        assert lanes_of(sources, random_windows(2, sources=3)[:]) == lanes


def offloaded(model, folder):
    """The model with every other layer, its embedding and last norm on the disk."""
    path, count = layer_list(model)
    places = {name: "disk" for name, _ in model.named_children() if name != path}
    places |= {f"{path}.{i}": "disk" if i % 2 else "cpu" for i in range(count)}
    return dispatch_model(model, places, offload_dir=folder, main_device="cpu")


def not_loaded(model):
    return [name for name, weight in model.named_parameters() if weight.device.type == "meta"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_offloaded_model_gives_the_same_bits_and_is_offloaded_again(kind, tmp_path):
    windows = random_windows(24, same_tokens=True, max_tokens=100)  # of lengths worth batches
    whole = source(tiny_model(kind), 2)
    batches = count_forwards(whole.model)
    expected, _ = harvest_windows([whole] * 2, windows, range(24), batch_size=12)
    assert len(batches) > 2
    model = offloaded(tiny_model(kind), tmp_path)
    before = not_loaded(model)
    assert len(before) > 10 and model.device.type == "meta"
    sources = [source(model, 2)] * 2
    again = count_forwards(model)
    for _ in range(2):
        again.clear()
        found, _ = harvest_windows(sources, windows, range(24), batch_size=12)
        assert again == batches
        assert torch.equal(found[0], expected[0])
        assert found[0].device.type == "cpu"
        assert not_loaded(model) == before


def test_a_forward_that_stops_inside_a_module_offloads_its_weights(tmp_path):
    hookpoint = "layers.1.self_attn.o_proj"  # the attention around it has weights of its own
    windows = random_windows(4, same_tokens=True)
    whole = source(tiny_model("gpt_oss"), hookpoint=hookpoint)
    expected, _ = harvest_windows([whole] * 2, windows, range(4), batch_size=2)
    model = offloaded(tiny_model("gpt_oss"), tmp_path)
    before = not_loaded(model)
    assert "layers.1.self_attn.sinks" in before
    parts = source(model, hookpoint=hookpoint)
    found, _ = harvest_windows([parts] * 2, windows, range(4), batch_size=2)
    assert torch.equal(found[0], expected[0])
    assert not_loaded(model) == before


def test_a_float16_model_gives_float16_activations():
    windows = random_windows(6, same_tokens=True)
    full, _ = harvest_windows([source(tiny_model("llama"), 2)] * 2, windows, range(6), batch_size=3)
    half = source(tiny_model("llama").half(), 2)
    found, _ = harvest_windows([half] * 2, windows, range(6), batch_size=3)
    assert found[0].dtype == torch.float16
    torch.testing.assert_close(found[0].float(), full[0], rtol=0.02, atol=0.02)


def test_activations_that_the_models_dtype_cannot_hold_are_refused():
    half = source(tiny_model("llama").half(), 1)
    layers(half.model)[1].register_forward_hook(lambda module, args, output: output.float() + 1e6)
    with pytest.raises(ValueError, match=r"NaN or infinite .*float16.* try bfloat16 or float32"):
        harvest_windows([half] * 2, random_windows(2, same_tokens=True), [0, 1], batch_size=2)
