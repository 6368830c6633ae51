import itertools
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify_crosscoder.harvest.harvest import harvest_windows
from sparsify_crosscoder.harvest.source import Source
from sparsify_crosscoder.store.live_stream import LiveStream
from sparsify_crosscoder.store.order import split_windows
from sparsify_crosscoder.store.store import ActivationStore
from sparsify_crosscoder.store.store_stream import StoreStream
from sparsify_crosscoder.store.stream import SelectedSources, every_noted_pair, every_pair
from sparsify_crosscoder.store.tensor_stream import TensorStream
from tests.support.models import tiny_model
from tests.support.tokenizers import byte_level_tokenizer
from tests.support.windows import random_windows

SOURCES = [
    Source("A", "layers.1", tiny_model("llama"), byte_level_tokenizer(), 32),
    Source("B", "h.1", tiny_model("gpt2", width=24), byte_level_tokenizer(), 24),
]
WINDOWS = random_windows(24)
_BOUNDS = [*itertools.accumulate(WINDOWS["num_pairs"], initial=0)]
for _name, _value in (("roles", lambda n: n % 5), ("writers", lambda n: n % 3 - 1)):
    _values = [[_value(n) for n in range(a, b)] for a, b in itertools.pairwise(_BOUNDS)]
    WINDOWS = WINDOWS.add_column(_name, _values)
NUM_PAIRS = sum(WINDOWS["num_pairs"])
STEP = 20
STEPS = 2 * NUM_PAIRS // STEP  # almost two epochs


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("stream") / "store"
    return ActivationStore.create(
        path, SOURCES, WINDOWS, batch_size=4, shard_pairs=50, dtype="float32"
    )


@pytest.fixture(scope="module")
def raw():
    return harvest_windows(SOURCES, WINDOWS, range(len(WINDOWS)), batch_size=4)[0]


@pytest.fixture(params=["live", "store", "large store"])
def make(request, store):
    """Makes a stream of each kind over the same pairs."""

    def live(**options):
        options = {"batch_size": 4, "buffer_pairs": 40, "seed": 0, **options}
        return LiveStream(SOURCES, WINDOWS, **options)

    def stored(**options):
        return StoreStream(store, **{"seed": 0, **options})

    def in_blocks(**options):
        return stored(stretch_pairs=40, whole_pairs=0, **options)

    return {"live": live, "store": stored, "large store": in_blocks}[request.param]


def pair_numbers(batches, raw):
    """Which pair of `raw` each row of the batches is, checked in both sources."""
    numbers = []
    for batch in batches:
        near = [(x[:, None] - other).norm(dim=2) for x, other in zip(batch, raw, strict=True)]
        for distance in near:
            if len(distance):
                assert distance.min(dim=1).values.max() < 1e-3
        numbers.append((near[0] + near[1]).argmin(dim=1).tolist())
    return numbers


def assert_same_bits(ones, others):
    for one, other in zip(ones, others, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)


def test_an_epoch_holds_every_pair_once_in_a_new_order(make, raw):
    stream = make()
    assert stream.num_pairs == NUM_PAIRS
    assert stream.d_sources == [32, 24]
    assert [x.shape for x in next(stream.batches(0, 1, STEP))] == [(STEP, 32), (STEP, 24)]
    rows = list(itertools.chain(*pair_numbers(stream.batches(0, STEPS, STEP), raw)))
    first, second = rows[:NUM_PAIRS], rows[NUM_PAIRS:]
    assert sorted(first) == list(range(NUM_PAIRS))
    assert len(set(second)) == len(second) > 0.8 * NUM_PAIRS
    assert first[: len(second)] != second
    assert first != sorted(first)


def test_the_order_depends_on_the_seed_alone(make, raw):
    order = pair_numbers(make(seed=5).batches(0, 4, STEP), raw)
    assert pair_numbers(make(seed=5).batches(0, 4, STEP), raw) == order
    assert pair_numbers(make(seed=6).batches(0, 4, STEP), raw) != order


def test_the_size_of_a_step_only_cuts_the_sequence_elsewhere(make):
    by_20 = torch.cat([batch[0] for batch in make().batches(0, 6, 20)])
    by_40 = torch.cat([batch[0] for batch in make().batches(0, 3, 40)])
    assert torch.equal(by_20, by_40)


@pytest.mark.parametrize("first_step", [1, 3, STEPS // 2, STEPS - 1])
def test_beginning_at_a_step_gives_the_bits_of_having_arrived_there(make, first_step):
    arrived = list(make().batches(0, STEPS, STEP))[first_step:]
    begun = list(make().batches(first_step, STEPS, STEP))
    assert_same_bits(begun, arrived)


def test_one_stream_can_be_read_again_from_anywhere(make):
    stream = make()
    once = list(stream.batches(0, STEPS, STEP))
    assert_same_bits(stream.batches(2, 5, STEP), once[2:5])
    assert_same_bits(stream.batches(0, STEPS, STEP), once)


@pytest.mark.parametrize("world_size", [2, 3])
def test_all_ranks_together_read_the_batches_of_one(make, raw, world_size):
    alone = pair_numbers(make().batches(0, STEPS, STEP), raw)
    ranks = [
        pair_numbers(make(rank=rank, world_size=world_size).batches(0, STEPS, STEP), raw)
        for rank in range(world_size)
    ]
    for step, expected in enumerate(alone):
        parts = [rank[step] for rank in ranks]
        assert sorted(itertools.chain(*parts)) == sorted(expected)
        for part in parts:
            positions = [expected.index(pair) for pair in part]
            assert positions == sorted(positions)


@pytest.mark.parametrize("first_step", [2, STEPS - 3])
def test_a_rank_that_begins_late_gets_the_same_bits(make, first_step):
    options = {"rank": 1, "world_size": 2}
    arrived = list(make(**options).batches(0, STEPS, STEP))[first_step:]
    assert_same_bits(make(**options).batches(first_step, STEPS, STEP), arrived)


def test_the_sample_is_the_beginning_of_the_sequence(make):
    first = [torch.cat(list(x)) for x in zip(*make().batches(0, 3, STEP), strict=True)]
    assert_same_bits([make().sample(3 * STEP)], [first])
    stream = make()
    assert len(stream.sample(10 * NUM_PAIRS)[0]) == NUM_PAIRS
    assert_same_bits(stream.batches(0, 1, STEP), make().batches(0, 1, STEP))


def test_the_samples_of_all_ranks_make_up_one_sample(make, raw):
    whole = pair_numbers([make().sample(50)], raw)[0]
    parts = pair_numbers([make(rank=rank, world_size=2).sample(50) for rank in (0, 1)], raw)
    assert sorted(parts[0] + parts[1]) == sorted(whole)


def test_only_the_windows_given_are_read(make, raw):
    train, held_out = split_windows(WINDOWS, 40, seed=0)
    read = []
    for rows in (train, held_out):
        stream = make(window_rows=rows)
        assert stream.num_pairs == sum(WINDOWS.select(rows)["num_pairs"])
        read += pair_numbers([stream.sample(stream.num_pairs)], raw)[0]
    assert sorted(read) == list(range(NUM_PAIRS))


def test_windows_without_pairs_are_refused(make):
    with pytest.raises(ValueError, match="no aligned pair"):
        make(window_rows=[])


def test_the_report_counts_what_was_read(make):
    stream = make()
    assert stream.report().pairs == 0
    list(stream.batches(0, NUM_PAIRS // STEP, STEP))
    assert NUM_PAIRS - STEP < stream.report().pairs <= NUM_PAIRS
    assert stream.report().pairs_per_second > 0


def test_one_stretch_is_in_memory_and_the_next_is_read_ahead(store, monkeypatch):
    read = []
    stored_rows = ActivationStore.stored_rows
    monkeypatch.setattr(
        ActivationStore,
        "stored_rows",
        lambda self, index: read.append(len(index)) or stored_rows(self, index),
    )
    stream = StoreStream(store, seed=0, stretch_pairs=64, whole_pairs=0)
    list(stream.batches(0, 3, STEP))
    stream._next[1].result()
    assert sum(read) <= 3 * 64
    list(stream.batches(3, NUM_PAIRS // STEP, STEP))
    stream._next[1].result()
    assert sum(read) <= NUM_PAIRS + 2 * 64


def test_damage_stops_training_and_names_the_shard(store, tmp_path):
    path = shutil.copytree(store.path, tmp_path / "damaged")
    file = path / "shard_000001.safetensors"
    data = bytearray(file.read_bytes())
    data[-50] ^= 1
    file.write_bytes(data)
    for whole_pairs in (0, 10**6):
        stream = StoreStream(ActivationStore.open(path), seed=0, whole_pairs=whole_pairs)
        with pytest.raises(ValueError, match=r"shard_000001.safetensors' is damaged"):
            list(stream.batches(0, NUM_PAIRS // STEP, STEP))


# Live harvest in blocks


def live(windows=WINDOWS, **options):
    options = {"batch_size": 4, "buffer_pairs": 40, "seed": 0, **options}
    return LiveStream(SOURCES, windows, **options)


def blocks_read(stream):
    """The windows that each block harvests in the first epoch, by the counts of the report."""
    stops, pairs = [], []
    for step in range(stream.num_pairs):
        before = stream.report().pairs
        next(stream.batches(step, step + 1, 1))
        if stream.report().pairs != before:
            stops.append(step)
            pairs.append(stream.report().pairs - before)
    return stops, pairs


@pytest.mark.parametrize("buffer_pairs", [1, 17, 40, 60])
def test_a_block_has_at_least_the_buffers_pairs_and_less_than_two_buffers(buffer_pairs):
    longest = max(WINDOWS["num_pairs"])
    starts, pairs = blocks_read(live(buffer_pairs=buffer_pairs))
    assert sum(pairs) == NUM_PAIRS
    assert starts == [0, *np.cumsum(pairs)[:-1]]
    assert all(buffer_pairs <= n < 2 * buffer_pairs + longest for n in pairs)
    assert len(pairs) > 1


def test_a_buffer_larger_than_the_dataset_is_one_block():
    _, pairs = blocks_read(live(buffer_pairs=10**9))
    assert pairs == [NUM_PAIRS]


def test_a_batch_is_not_one_text(raw):
    texts = np.repeat(WINDOWS["text_id"], WINDOWS["num_pairs"])
    for batch in pair_numbers(live(buffer_pairs=80).batches(0, 5, STEP), raw):
        assert len(set(texts[batch])) >= 4


def test_blocks_before_the_first_step_run_no_model():
    stream = live()
    list(stream.batches(STEPS - 2, STEPS - 1, STEP))
    assert 0 < stream.report().pairs <= 80 + 2 * max(WINDOWS["num_pairs"])


def test_a_rank_runs_only_its_own_windows():
    reports = []
    for rank in range(2):
        stream = live(rank=rank, world_size=2)
        list(stream.batches(0, NUM_PAIRS // STEP, STEP))
        reports.append(stream.report())
    assert sum(report.windows for report in reports) == len(WINDOWS)
    assert sum(report.pairs for report in reports) == NUM_PAIRS
    assert min(report.windows for report in reports) > len(WINDOWS) // 3


def test_a_rank_without_windows_yields_empty_batches():
    for batch in live(WINDOWS.select([0, 1]), rank=2, world_size=3).batches(0, 2, 4):
        assert [x.shape for x in batch] == [(0, 32), (0, 24)]


def test_the_order_does_not_depend_on_the_batch_size_of_the_models(raw):
    one = pair_numbers(live(batch_size=1).batches(0, 4, STEP), raw)
    assert pair_numbers(live(batch_size=16).batches(0, 4, STEP), raw) == one


def test_an_empty_buffer_is_refused():
    with pytest.raises(ValueError, match="buffer_pairs must be at least 1"):
        live(buffer_pairs=0)


# Hold-out


@pytest.mark.parametrize("held_out_pairs", [1, 30, 100])
def test_whole_texts_are_held_out_until_there_are_enough_pairs(held_out_pairs):
    train, held_out = split_windows(WINDOWS, held_out_pairs, seed=3)
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(len(WINDOWS)))
    texts = np.array(WINDOWS["text_id"])
    assert not set(texts[train]) & set(texts[held_out])
    counts = np.array(WINDOWS["num_pairs"])
    assert counts[held_out].sum() >= held_out_pairs
    without_one = [counts[held_out][texts[held_out] != text].sum() for text in texts[held_out]]
    assert min(without_one) < held_out_pairs


def test_the_same_seed_holds_out_the_same_texts():
    first = split_windows(WINDOWS, 50, seed=1)
    assert torch.equal(split_windows(WINDOWS, 50, seed=1)[1], first[1])
    assert any(
        not torch.equal(split_windows(WINDOWS, 50, seed=seed)[1], first[1]) for seed in (2, 3, 4)
    )


def test_nothing_is_held_out_when_no_pairs_are_asked_for():
    train, held_out = split_windows(WINDOWS, 0, seed=1)
    assert train.tolist() == list(range(len(WINDOWS)))
    assert held_out.tolist() == []


def test_holding_out_everything_is_refused():
    with pytest.raises(ValueError, match="leaves none to train on"):
        split_windows(WINDOWS, NUM_PAIRS, seed=1)


def test_pairs_in_memory_come_as_they_are_or_in_a_new_order_each_epoch():
    pairs = [torch.arange(10.0)[:, None], torch.arange(10.0)[:, None] * 2]
    as_they_are = TensorStream(pairs)
    assert torch.cat([a for a, _ in as_they_are.batches(0, 5, 4)])[:, 0].tolist() == [
        float(i % 10) for i in range(20)
    ]
    shuffled = TensorStream(pairs, seed=3)
    read = [torch.cat(part)[:, 0] for part in zip(*shuffled.batches(0, 4, 5), strict=True)]
    assert torch.equal(read[1], 2 * read[0])
    epochs = read[0].split(10)
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert not torch.equal(*epochs)
    assert torch.equal(TensorStream(pairs, seed=3).sample(10)[0][:, 0], epochs[0])
    ranks = [TensorStream(pairs, seed=3, rank=r, world_size=2) for r in (0, 1)]
    parts = [torch.cat([a for a, _ in rank.batches(0, 2, 5)])[:, 0] for rank in ranks]
    assert sorted(torch.cat(parts).tolist()) == list(range(10))
    assert shuffled.report().pairs == 20 and shuffled.d_sources == [1, 1]


@pytest.mark.parametrize("pairs", [[3, 4], [0, 0]])
def test_uneven_or_no_pairs_in_memory_are_refused(pairs):
    with pytest.raises(ValueError, match="same number of pairs"):
        TensorStream([torch.zeros(n, 2) for n in pairs])


def test_a_source_can_be_compared_with_itself():
    pairs = [torch.arange(12.0).reshape(6, 2), torch.arange(18.0).reshape(6, 3)]
    stream = TensorStream(pairs, seed=1)
    doubled = SelectedSources(TensorStream(pairs, seed=1), [0, 0])
    assert doubled.d_sources == [2, 2]
    assert doubled.num_pairs == 6
    for (first, _), (one, other) in zip(
        stream.batches(0, 4, 4), doubled.batches(0, 4, 4), strict=True
    ):
        assert torch.equal(one, first)
        assert torch.equal(other, first)
    assert doubled.report().pairs == 16


@pytest.mark.parametrize("sources", [[], [2], [-1, 0]])
def test_sources_that_a_stream_lacks_are_refused(sources):
    stream = TensorStream([torch.zeros(3, 2), torch.zeros(3, 4)])
    with pytest.raises(ValueError, match=r"sources 0\.\.1"):
        SelectedSources(stream, sources)


@settings(deadline=None, max_examples=60)
@given(
    total=st.integers(1, 300),
    largest=st.integers(1, 90),
    least=st.integers(1, 4),
    asked=st.none() | st.integers(1, 400),
    ranks=st.integers(1, 3),
)
def test_every_pair_comes_exactly_once(total, largest, least, asked, ranks):
    parts = [
        list(every_pair(stream, largest, asked, least))
        for stream in (
            TensorStream([torch.arange(total)[:, None]], seed=1, rank=r, world_size=ranks)
            for r in range(ranks)
        )
    ]
    read = [int(i) for batches in parts for (batch,) in batches for i in batch]
    assert len(read) == len(set(read)) == min(total, asked or total)
    sizes = [sum(len(batch) for (batch,) in step) for step in zip(*parts, strict=True)]
    assert max(sizes) <= largest and len(set(sizes[:-1])) <= 1
    assert len(sizes) >= min(least, len(read))


def test_every_pair_of_running_models_and_of_a_store_comes_once():
    # 8,400 pairs in batches of at most 1,024: eight of 934, and the other 928.
    sizes = [len(a) for (a,) in every_pair(TensorStream([torch.zeros(8_400, 1)]), 1_024)]
    assert sizes == [934] * 8 + [928]
    for world_size in (1, 2):
        streams = [live(rank=r, world_size=world_size) for r in range(world_size)]
        counts = [sum(len(batch[0]) for batch in every_pair(one, 20)) for one in streams]
        assert sum(counts) == NUM_PAIRS and NUM_PAIRS % 20


@pytest.mark.parametrize("rank", [0, 1])
def test_where_pairs_come_from_goes_with_them(rank, make, raw):
    rows = split_windows(WINDOWS, 40, seed=3)[0]
    stream = make(window_rows=rows, rank=rank, world_size=2)
    ends = [end for window in WINDOWS["ends"] for end in window]
    texts = [
        t for t, n in zip(WINDOWS["text_id"], WINDOWS["num_pairs"], strict=True) for _ in range(n)
    ]
    batches = list(every_noted_pair(SelectedSources(stream, [0, 1]), STEP))
    numbers = pair_numbers([batch for batch, _ in batches], raw)
    for (_, notes), chosen in zip(batches, numbers, strict=True):
        assert notes.known
        assert notes.role.tolist() == [n % 5 for n in chosen]
        assert notes.writer.tolist() == [n % 3 - 1 for n in chosen]
        assert notes.end.tolist() == [ends[n] for n in chosen]
        assert notes.text_id.tolist() == [texts[n] for n in chosen]
        assert [_BOUNDS[w] + p for w, p in zip(notes.window, notes.position, strict=True)] == chosen
    plain = list(every_pair(make(window_rows=rows, rank=rank, world_size=2), STEP))
    assert_same_bits(plain, [batch for batch, _ in batches])
