"""Shared latents ablated in both models, against whole models that are changed by hand."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from sparsify_crosscoder import Crosscoder, Run
from sparsify_crosscoder.__main__ import main
from sparsify_crosscoder.commands import train
from sparsify_crosscoder.evaluation.false_exclusives import called_exclusive
from sparsify_crosscoder.harvest.common_tokens import common_tokens
from sparsify_crosscoder.interventions.equivalence import (
    MOST_PAIRS,
    EquivalenceConfig,
    equivalence,
)
from sparsify_crosscoder.interventions.equivalence_found import Equivalences
from sparsify_crosscoder.interventions.graft import ReadPairs
from sparsify_crosscoder.interventions.graft_text import text_to_graft
from sparsify_crosscoder.runs.models import load_run_sources
from tests.interventions.test_graft import by_hand

TEXTS = 6


@pytest.fixture(scope="module")
def opened(run) -> Run:
    return Run.open(run)


@pytest.fixture(scope="module")
def found(opened) -> Equivalences:
    return equivalence(opened, EquivalenceConfig(count=3, texts=TEXTS), device="cpu")


@torch.no_grad()
def test_the_correlation_is_that_of_whole_models_without_what_the_latent_writes(opened, found):
    sources = load_run_sources(opened.config, torch.device("cpu"), "on")
    common = common_tokens(sources[0], sources[1])
    text = text_to_graft(opened, sources, TEXTS)
    read = ReadPairs.of(opened, opened.crosscoder(), sources, text)
    one = min(found.latents, key=lambda one: one.pairs)
    acts = torch.cat([code.to_dense() for code in read.codes])[:, one.latent] * read.usual
    assert 0 < one.pairs == min(int((acts > 0).sum()), MOST_PAIRS)
    chosen = acts.topk(one.pairs).indices
    changes, kls = [], []
    for s, source in enumerate(sources):
        end = opened.ends[s]
        model = AutoModelForCausalLM.from_pretrained(end.model, dtype=source.model.dtype).eval()
        row = read.crosscoder.decoder(s)[one.latent] / read.crosscoder.factors[s]
        values, pair, mine = read.raw[s].float() - acts[:, None] * row, 0, []
        windows = text.windows
        for ids, places in zip(windows[f"input_ids_{s}"], windows[f"pairs_{s}"], strict=True):
            here = slice(pair, pair + len(places))
            pair += len(places)
            fires, at = acts[here] > 0, torch.tensor(places)
            padded = [*ids, 0]  # `by_hand` leaves the last token's expectations out
            plain = by_hand(model, end.hookpoint, padded, [], values[:0])
            other = by_hand(model, end.hookpoint, padded, at[fires], values[here][fires])
            logs = [common.log_probabilities(s, x[at]) for x in (plain, other)]
            mine.append(torch.stack([logs[1] - logs[0], logs[0]], 1))
        every = torch.cat(mine)[chosen]
        changes.append(every)
        kls.append((every[:, 1].exp() * -every[:, 0]).sum(1).mean())
    assert len(common) < 2000  # all of them are compared
    a, b = (F.normalize(x[:, 0] - x[:, 0].mean(1, keepdim=True), dim=1) for x in changes)
    assert one.correlation.value == pytest.approx(float((a * b).sum(1).mean()), abs=2e-2)
    for kl, right in zip(one.kl, kls, strict=True):
        assert kl.value == pytest.approx(float(right), rel=5e-2, abs=1e-5)
    assert one.cosine is None and one.gap.value == pytest.approx(
        one.correlation.value - one.null.value, abs=1e-6
    )


@pytest.fixture(scope="module")
def copied(twins, tmp_path_factory) -> Run:
    """A run of a model and its copy, whose latents all write the same in both."""
    folder = tmp_path_factory.mktemp("copied")
    shutil.copytree(twins.parent / "base", folder / "copy")
    options = "--hookpoints layers.1 layers.1 --num_latents 64 --k 4 --pairs_per_step 128 --lr 1e-3"
    options += " --max_steps 30 --ctx_len 64 --run_name run --log_to_wandb False --device cpu"
    options += " --arch crosscoder --model_dtype float32"
    models = [str(twins.parent / "base"), str(twins.parent / "texts.txt")]
    places = ["--partners", str(folder / "copy"), "--save_dir", str(folder)]
    train.main([*models, *places, *options.split()])
    crosscoder = Crosscoder.load_one(folder / "run")
    first, second = crosscoder.columns
    with torch.no_grad():
        crosscoder.decoders[0][:, second] = crosscoder.decoders[0][:, first]
    crosscoder.save_to_disk(folder / "run" / "layers.1+layers.1")
    return Run.open(folder / "run")


def test_of_a_model_and_its_copy_what_writes_the_same_does_the_same(copied):
    found = equivalence(copied, EquivalenceConfig(count=3, texts=TEXTS), device="cpu")
    for one in found.latents:
        assert one.cosine == pytest.approx(1, abs=1e-5)
        assert one.correlation.value == pytest.approx(1, abs=1e-3)
        assert one.kl[0].value == pytest.approx(one.kl[1].value, rel=1e-3) and one.kl[0].value > 0
        assert one.null.value < 0.9 and one.same
    assert found.summary()["same"] == 3 == len(found.latents)


def test_rows_come_back_from_json_and_are_in_words(found):
    assert Equivalences.of_dict(json.loads(json.dumps(found.to_dict()))) == found
    said = found.text()
    for one in found.latents:
        assert -1 <= one.correlation.low <= one.correlation.value <= one.correlation.high <= 1
        assert f"{one.latent:>7}  {one.correlation.value:.2f} (" in said
        assert one.columns()["equivalence"] == one.correlation.value
    assert f"of {len(found.latents)} do more alike in both" in said


def test_what_cannot_be_compared_is_said(opened, run, capsys, tmp_path):
    exclusive = int(called_exclusive(opened.crosscoder())[0][0])
    with pytest.raises(SystemExit, match="1"):
        main(["equivalence", str(run), "--latents", str(exclusive), "--device", "cpu"])
    assert f"Latent {exclusive} is exclusive to one" in capsys.readouterr().err
    with pytest.raises(ValueError, match="There is no latent 64: the run has 64"):
        equivalence(opened, EquivalenceConfig([64]), device="cpu")
    with pytest.raises(ValueError, match="must be at least 1"):
        EquivalenceConfig(controls=0)
