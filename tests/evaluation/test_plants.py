"""Planting known differences into a run's pairs, and counting what is found of them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom

from sparsify_crosscoder import ActivationStore, Run
from sparsify_crosscoder.__main__ import main
from sparsify_crosscoder.commands import train
from sparsify_crosscoder.crosscoders import ResidualDedicatedFeatureCrosscoder
from sparsify_crosscoder.crosscoders.rdfc import RDFCConfig
from sparsify_crosscoder.evaluation.differences import (
    DifferenceConfig,
    crosscoder_differences,
)
from sparsify_crosscoder.evaluation.false_exclusives import FilterConfig
from sparsify_crosscoder.evaluation.plant_places import StorePlaces, Wanted, pack
from sparsify_crosscoder.evaluation.planted_recall import Recall
from sparsify_crosscoder.evaluation.planted_training import PlantedRun, begin_again
from sparsify_crosscoder.evaluation.plants import (
    Cell,
    Plant,
    PlantedPairs,
    PlantedStream,
    SourceScale,
    pair_tokens,
)
from sparsify_crosscoder.evaluation.power import (
    PlantConfig,
    planted_list,
    planted_recall,
    power_text,
)
from sparsify_crosscoder.store.store_stream import StoreStream

PLANTED = "--kinds random --sizes 1 --frequencies 0.02 --replicates 3 --together 1 --refit 0.5"
LARGE = f"{PLANTED} --pairs 6000 --device cpu".split()


@pytest.fixture(scope="module")
def residual(twins) -> Path:
    """A residual DFC on the store of a tiny model and its fine-tune."""
    folder = twins.parent
    options = "--num_latents 64 --k 4 --pairs_per_step 128 --lr 3e-3 --max_steps 60 --epochs 10"
    options += " --normalization_pairs 2000"
    options += " --exclusive_fractions 0.2 0.2 --run_name residual --log_to_wandb False"
    places = ["--save_dir", str(folder), "--device", "cpu"]
    models = [str(folder / "base"), str(folder / "store"), "--arch", "rdfc"]
    train.main([*models, *options.split(), *places])
    return folder / "residual"


@pytest.fixture(scope="module")
def store(twins) -> ActivationStore:
    return ActivationStore.open(twins.parent / "store")


def plant(source: int, pairs: list[int], direction: torch.Tensor, strength: float) -> Plant:
    where = np.array(pairs)
    return Plant(Cell("random", 1.0, 0.1), 0, source, where, direction, strength)


def test_a_plant_moves_its_source_on_its_pairs_alone_and_plants_add_up():
    x = [torch.arange(12.0).view(4, 3), torch.ones(4, 2, dtype=torch.bfloat16)]
    first, second = torch.tensor([0.6, 0.8, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    planted = PlantedPairs([plant(0, [5, 9], first, 10), plant(0, [9], second, 2)], 10)
    moved = planted.add(torch.tensor([9, 0, 5, 1]), x)
    by = torch.tensor([[6.0, 8, 2], [0, 0, 0], [6, 8, 0], [0, 0, 0]])
    assert torch.equal(moved[0], x[0] + by) and moved[1] is x[1]
    assert torch.equal(x[0], torch.arange(12.0).view(4, 3))


def test_what_a_stream_reads_and_what_the_list_reads_have_the_same_plants(store):
    width = store.d_sources[1]
    direction = torch.nn.functional.normalize(torch.ones(width), dim=0)
    planted = PlantedPairs([plant(1, [3, 50, 51], direction, 100.0)], len(store))
    stream = StoreStream(store, seed=3)
    with_plants = PlantedStream(StoreStream(store, seed=3), planted)
    numbers = stream.numbers(0, 400)
    before, after = stream._read(0, 400), with_plants._read(0, 400)
    moved = (before[1] != after[1]).any(1)
    assert set(numbers[moved].tolist()) == {3, 50, 51} & set(numbers.tolist())
    assert torch.equal(before[0], after[0]) and after[1].dtype == before[1].dtype
    assert torch.equal(planted.add(numbers, store.rows(numbers))[1], after[1])


def test_tokens_and_topics_are_where_the_windows_have_them(store):
    tokens, texts = [], []
    for window in store.windows:
        tokens += [window["input_ids_1"][place] for place in window["pairs_1"]]
        texts += [window["text_id"]] * window["num_pairs"]
    tokens, texts = np.array(tokens), np.array(texts)
    assert np.array_equal(pair_tokens(store, 1), tokens)
    places = StorePlaces(store, seed=0)
    token = places.of(Cell("token", 1, 0.02), 1, 0)[0]
    assert np.array_equal(token.pairs, np.flatnonzero(tokens == token.token))
    assert len(token.pairs) / len(tokens) == pytest.approx(0.02, rel=0.5)
    topic = places.of(Cell("topic", 1, 0.4), 1, 0)[0]
    of_it = np.unique(texts[tokens == topic.token])
    assert np.array_equal(topic.pairs, np.flatnonzero(np.isin(texts, of_it)))
    [anywhere] = places.of(Cell("random", 1, 0.02), 1, 0)
    assert len(np.unique(anywhere.pairs)) == len(anywhere.pairs) == round(0.02 * len(tokens))
    [again] = StorePlaces(store, seed=0).of(Cell("random", 1, 0.02), 1, 0)
    [other] = StorePlaces(store, seed=1).of(Cell("random", 1, 0.02), 1, 0)
    assert np.array_equal(anywhere.pairs, again.pairs)
    assert not np.array_equal(anywhere.pairs, other.pairs)


def test_plants_of_one_copy_are_few_and_apart_and_what_has_no_place_is_said(store):
    cells = [Cell("token", size, 0.02) for size in (1.0, 0.5)]
    cells += [Cell("random", 1.0, 0.01), Cell("topic", 1.0, 1e-5)]
    wanted = [Wanted(cell, r, r % 2) for cell in cells for r in range(6)]
    rounds, nowhere = pack(wanted, StorePlaces(store, seed=0), together=2)
    assert nowhere == [one for one in wanted if one.cell.kind == "topic"]
    placed = [one for some in rounds for one in some]
    assert sorted(one.wanted for one in placed) == sorted(set(wanted) - set(nowhere))
    for some in rounds:
        assert all(sum(one.wanted.source == s for one in some) <= 2 for s in (0, 1))
        tokens = [one.place for one in some if one.place.token is not None]
        for i, one in enumerate(tokens):
            for other in tokens[:i]:
                assert not set(one.pairs) & set(other.pairs)


def test_directions_lie_where_the_activations_vary_or_anywhere():
    random = np.random.default_rng(0)
    rows = torch.from_numpy(random.standard_normal((4_000, 30))).float()
    rows[:, :20] *= 0.01
    rows[:, 25:] *= 100  # the dimensions of most variance, of which nothing is drawn
    scale = SourceScale.of(rows, outlier_multiple=0)
    assert scale.norm == pytest.approx(float((rows - rows.mean(0)).norm(dim=1).median()))
    like, anywhere = (
        torch.stack([scale.draw(kind, np.random.default_rng(i)) for i in range(50)])
        for kind in ("activations", "isotropic")
    )
    assert torch.allclose(like.norm(dim=1), torch.ones(50), atol=1e-5)
    assert float(like[:, 20:25].square().sum(1).min()) > 0.95
    assert float(anywhere[:, :20].square().sum(1).mean()) == pytest.approx(2 / 3, abs=0.1)


def test_a_refit_keeps_what_is_shared_and_begins_the_exclusive_blocks_again():
    cfg = RDFCConfig(num_latents=40, k=3, exclusive_fractions=[0.1, 0.1])
    trained, fresh = (ResidualDedicatedFeatureCrosscoder([8, 8], cfg) for _ in range(2))
    with torch.no_grad():
        trained.encoder.bias.fill_(1.0)
        trained.factors.fill_(3.0)
    first = [weight.clone() for weight in fresh.encoder.weights]
    begin_again(fresh, trained)
    for b, block in enumerate(fresh.partition.blocks):
        alone = len(block.sources) == 1
        assert torch.equal(
            fresh.encoder.weights[b], (first if alone else trained.encoder.weights)[b]
        )
        assert (fresh.encoder.bias[block.start : block.stop] == (0 if alone else 1)).all()
    assert torch.equal(fresh.factors, trained.factors)


def test_what_is_large_is_found_nothing_is_without_it_and_a_stopped_command_goes_on(
    residual, tmp_path, capsys
):
    main(["plant", str(residual), *LARGE, "--json", str(tmp_path / "first.json")])
    printed = capsys.readouterr().out
    first = json.loads((tmp_path / "first.json").read_text(encoding="utf-8"))
    assert first["recall"]["found"] == first["recall"]["of"] == 3
    assert first["found_without"] == 0 and len(first["without"]) == 3
    assert all(one["cosine"] > 0.8 and one["pairs"] > 400 for one in first["plants"])
    assert "trainings of 30 steps" in printed and "3 of 3 (44% to 100%)" in printed
    assert not (residual / "plants" / "training").exists()

    missed, _, table = power_text(Run.open(residual)).partition("\n")
    assert missed == "0 of 3 differences that were planted would have been missed (0% to 56%)"
    assert table in printed

    # As a kill leaves it: a round short, and a part of a line.
    shutil.copytree(residual / "plants", tmp_path / "plants")
    rounds = tmp_path / "plants" / "rounds.jsonl"
    whole = rounds.read_bytes().splitlines(keepends=True)
    rounds.write_bytes(b"".join(whole[:-1]) + whole[-1][:40])
    again = ["--out", str(tmp_path / "plants"), "--json", str(tmp_path / "again.json")]
    main(["plant", str(residual), *LARGE, *again])
    second = json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))
    assert {**second, "seconds": 0} == {**first, "seconds": 0}

    with pytest.raises(SystemExit) as stop:
        main(["plant", str(residual), *LARGE, "--seed", "1"])
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert "holds plants of other settings (plants: seed)" in said and "--out" in said


def test_the_list_of_no_plants_is_that_of_the_filter_without_next_tokens(residual):
    run, config = Run.open(residual), FilterConfig(pairs=6_000)
    opened = PlantedRun.of(run, torch.device("cpu"))
    found = planted_list(opened, opened.crosscoder, PlantedPairs([], len(opened.store)), 6_000)
    settings = DifferenceConfig(pairs=6_000, use_kl=False)
    usual = crosscoder_differences(run, opened.crosscoder, config, settings=settings)
    assert len(found.entries) > 5
    for mine, theirs in zip(found.entries, usual.entries, strict=True):
        assert (mine.kind, mine.latent, mine.finding) == (
            theirs.kind,
            theirs.latent,
            theirs.finding,
        )
        assert mine.score == theirs.score


def test_a_list_without_findings_says_how_to_learn_what_it_would_have(twins, capsys):
    assert power_text(Run.open(twins)).endswith(f"`sparsify-crosscoder plant {twins}`")
    main(["filter", str(twins), "--pairs", "6000", "--min_firings", "100000", "--device", "cpu"])
    printed = capsys.readouterr().out
    empty = printed.startswith("no difference between")
    assert empty is (f"`sparsify-crosscoder plant {twins}`" in printed)


def test_from_zero_and_from_python_the_run_itself_has_nothing(residual, tmp_path):
    config = PlantConfig(("random",), (1.0,), (0.02,), 1, pairs=6_000)
    found = planted_recall(Run.open(residual), config, out=tmp_path / "plants", device="cpu")
    assert found.steps == 60 and len(found.rounds) == 1
    assert found.recall().found == 1 and found.found_without == 0
    assert found.recall(lambda one: one.source == 1).of == 0
    assert "random" in found.text() and found.to_dict()["cells"][0]["listed"] == 1


@pytest.mark.parametrize(
    "options, complaint",
    [
        (["--sizes", "0"], "above 0"),
        (["--frequencies", "0.9"], "up to 0.5"),
        (["--replicates", "0"], "at least 1"),
        (["--refit", "2"], "share of the run's steps"),
    ],
)
def test_what_cannot_be_planted_is_said_in_a_line(residual, options, complaint, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plant", str(residual), *options])
    assert stop.value.code == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert complaint in line


def test_a_run_without_a_store_is_told_what_to_do(residual):
    run = Run.open(residual)
    elsewhere = replace(run.config, dataset="texts.txt", cache=None, partners=["a"])
    with pytest.raises(ValueError, match="no activation store"):
        planted_recall(Run(run.path, elsewhere), device="cpu")


@pytest.mark.parametrize("of", [4, 12, 16, 48, 160])
def test_intervals_of_recall_cover_what_they_claim(of):
    """95% on average over all rates, by the binomial distribution itself."""
    intervals = np.array([Recall(found, of).interval for found in range(of + 1)])
    rates = (np.arange(2_000) + 0.5) / 2_000
    covered = (intervals[:, :1] <= rates) & (rates <= intervals[:, 1:])
    chances = binom.pmf(np.arange(of + 1)[:, None], of, rates)
    assert 0.93 <= float((covered * chances).sum(0).mean()) <= 0.97
    assert Recall(0, 0).interval == (0, 1)
