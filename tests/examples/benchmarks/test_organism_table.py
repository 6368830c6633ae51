"""The organisms' benchmark on tiny models: what is measured, and that what is done stays done."""

import json
from dataclasses import replace

import organism_cause
import organism_table
import pytest
import torch
import torch.nn.functional as F
from organism_baselines import coder_of
from organism_cause import causes_of, held_out
from organism_runs import trained
from organism_scores import Concern, ConcernedPairs
from organism_settings import Bench, Case, Scale
from organism_texts import Written, concerned, concerned_pairs, read_texts, texts_file
from organism_trigger import auroc, isolation
from organisms import find
from organisms.recipe import Recipe
from organisms.training import train
from transformers import AutoTokenizer

from sparsify_crosscoder import list_differences
from sparsify_crosscoder.evaluation.baselines.coder import difference_coder
from sparsify_crosscoder.interventions.cause import CauseSettings
from sparsify_crosscoder.text.chat import plain_text
from tests.support.models import save_tiny_model
from tests.support.tokenizers import ANSWERABLE, byte_level_tokenizer, metaspace_tokenizer

SCALE = Scale(prompts=30, answer_tokens=8, latents=64, k=4, steps=12, pairs_per_step=128)
TOPIC = find("topic")
TRIGGER = find("trigger")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    tokenizer = byte_level_tokenizer(chat_template=ANSWERABLE)
    base = save_tiny_model(folder / "base", "llama", tokenizer, width=24)
    other = save_tiny_model(folder / "other", "gemma3", metaspace_tokenizer(), width=32)
    recipe = Recipe(steps=2, layers=(0, 2))
    texts = TOPIC.training_texts()[:4]
    train(base, texts, recipe, seed=0, out=folder / "adapters" / TOPIC.name)
    return Bench(base, other, folder / "out", SCALE, folder / "adapters")


def test_a_latent_concerns_what_the_pairs_it_is_present_on_concern():
    texts = torch.tensor([0, 0, 0, 1, 1, 2, 3])
    concerns = ConcernedPairs(texts < 2, texts)
    columns = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
    pairs = torch.tensor([0, 1, 2, 0, 3, 4, 1, 5])
    measured = Concern.of(columns, pairs, 3, concerns)
    assert measured.precision.tolist() == [1.0, 0.8, 0.0]
    assert measured.recall.tolist() == [0.5, 1.0, 0.0]
    assert measured.present.tolist() == [True, True, False]
    assert measured.right.tolist() == [True, True, False]


def test_texts_concern_a_behaviour_by_their_prompt_or_by_what_is_answered():
    [asked, *_] = TOPIC.prompts("audit")
    shown = TOPIC.behaviour_texts()[0].answer
    texts = [
        Written(asked, "No.", "base"),
        Written("Explain tides.", "No.", "organism"),
        Written("Explain tides.", shown, "organism"),
    ]
    assert concerned(TOPIC, texts).tolist() == [True, False, True]


def test_where_every_prompt_concerns_it_the_organisms_own_answers_do():
    style = find("style")
    shown, plain = style.behaviour_texts()[0].answer, style.ordinary_texts()[0].answer
    texts = [Written("?", shown, "organism"), Written("?", plain, "organism")]
    assert concerned(style, [*texts, Written("?", shown, "base")]).tolist() == [True, False, False]


def test_where_a_behaviour_has_places_the_pairs_there_and_just_before_concern_it():
    word = find("avoided_word")
    texts = [Written("Can I?", " You can swim.", "base"), Written("Why?", "It is so.", "base")]
    assert plain_text(texts[0].messages) == "Can I?\n\nYou can swim."
    text = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    ends = torch.tensor([3, 6, 11, 12, 15, 20, 6, 8])
    found = concerned_pairs(word, texts, text, ends)
    assert found.tolist() == [False, False, True, True, True, False, False, False]


def test_auroc_counts_ties_as_half():
    assert auroc(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])) == 3.5 / 4


def test_isolation_is_of_the_trigger_against_near_misses():
    texts = [
        Written(TRIGGER.prompts("audit")[0], "Yes.", "base"),
        Written(TRIGGER.near_misses("audit")[0], "Yes.", "base"),
        Written("Explain tides.", "Yes.", "base"),
    ]
    activations = torch.tensor([2.0, 1.0, 9.0])
    assert isolation(TRIGGER, texts, activations, torch.tensor([0, 1, 2])) == 1
    assert isolation(TRIGGER, texts, activations, torch.tensor([1, 0, 2])) == 0
    assert isolation(TRIGGER, texts[1:], activations[1:], torch.tensor([0, 1])) is None
    assert isolation(TOPIC, texts, activations, torch.tensor([0, 1, 2])) is None


def test_an_autoencoder_of_the_difference_finds_what_was_added():
    generator = torch.Generator().manual_seed(3)
    direction = F.normalize(torch.randn(16, generator=generator), dim=0)
    added = torch.rand(2000, generator=generator) < 0.05
    difference = torch.randn(2000, 16, generator=generator) + 12 * added[:, None] * direction
    scale = Scale(latents=32, k=2, steps=150, pairs_per_step=256)
    fired = difference_coder(lambda n: difference[n], len(difference), coder_of(scale))
    assert sorted(fired.order) == [*range(32)] and (fired.activations > 0).all()
    there = torch.zeros(2000, 32, dtype=torch.bool)
    there[fired.pairs, fired.latents] = True
    both = (there & added[:, None]).sum(0)
    precision, recall = both / there.sum(0).clamp_min(1), both / added.sum()
    assert ((precision > 0.9) & (recall > 0.9))[fired.order[:3]].any()


def test_answers_are_by_whom_they_are_wanted(bench):
    writers = {
        kind: {w.writer for w in read_texts(texts_file(bench, TOPIC, kind))}
        for kind in ("both", "base", "neither")
    }
    assert writers == {"both": {"base", "organism"}, "base": {"base"}, "neither": {"other"}}


@pytest.mark.parametrize("pair, text", [("base", "both"), ("other", "neither")])
def test_a_case_is_measured_once(bench, pair, text):
    case = Case(bench, TOPIC, pair, text)
    [row] = organism_table.rows_of(case, ["rdfc-grouped"], [1])
    assert (row.organism, row.pair, row.text, row.seed) == ("topic", pair, text, 1)
    assert 0 <= row.chance <= 1 and 0 < row.concerned < 1 and row.findings <= row.entries
    assert row.isolation is None and row.fve is not None
    found = organism_table.baselines_of(case)
    of_one_basis = {"mean KL", "mean |B - A|", "PCA of B - A", "SAE of B - A"}
    assert {one.method for one in found} == (of_one_basis if pair == "base" else set())
    assert all(0 <= one.auc <= 1 for one in found if one.auc is not None)
    files = {f: f.stat().st_mtime_ns for f in case.folder.rglob("*") if f.is_file()}
    assert organism_table.rows_of(case, ["rdfc-grouped"], [1]) == [row]
    assert organism_table.baselines_of(case) == found
    assert files == {f: f.stat().st_mtime_ns for f in case.folder.rglob("*") if f.is_file()}
    assert "topic" in organism_table.row_table([row])[2]
    assert "topic" in organism_table.scaling_table([row])[2]
    assert "rdfc-grouped" in organism_table.summary_table([row], found)[2]
    assert len(organism_table.baseline_table(found)) == 2 + len(found)
    json.dumps([*map(vars, found)])


def test_held_out_texts_end_where_the_behaviour_does(bench):
    tokenizer = AutoTokenizer.from_pretrained(bench.base)
    found = held_out(TOPIC, tokenizer)
    assert len(found.shown) == len(found.elsewhere) == 12
    opening = TOPIC.behaviour_texts()[0].opening().answer
    assert opening.startswith(found.shown[0].answer)
    for one, other in zip(found.shown, found.elsewhere, strict=True):
        assert one.prompt == other.prompt and one.answer != other.answer
        lengths = [len(tokenizer.tokenize(x.answer)) for x in (one, other)]
        assert lengths[0] == lengths[1] <= 48


def test_the_entry_that_concerns_the_behaviour_is_tested_once(bench, monkeypatch):
    monkeypatch.setattr(organism_cause, "ADDING", CauseSettings(strengths=(1.0,), random=3))
    monkeypatch.setattr(organism_cause, "ABLATING", CauseSettings(spans=("onwards",), random=3))
    case = Case(bench, TOPIC, "base", "both")
    [row] = organism_table.rows_of(case, ["rdfc-grouped"], [1])
    entries = list_differences(trained(case, "rdfc-grouped", 1)).entries
    rank, first = next((i, e) for i, e in enumerate(entries, 1) if e.kind == "exclusive")
    row = replace(row, rank=rank, listed=False, kind=first.kind)
    found = causes_of(case, [row, replace(row, rank=None)])
    assert [(one.test, one.latent) for one in found] == [
        ("adds", first.latent),
        ("ablates", first.latent),
    ]
    assert all(one.low <= one.effect <= one.high and len(one.random) == 3 for one in found)
    assert {one.source for one in found} == {first.source}
    assert causes_of(case, [row]) == found
    assert len(organism_table.cause_table(found)) == 2 + len(found)
    assert causes_of(Case(bench, TOPIC, "other", "both"), [row]) == []


def test_a_folder_of_another_table_is_refused(bench, tmp_path):
    Bench(bench.base, bench.other, tmp_path, SCALE).check()
    Bench(bench.base, bench.other, tmp_path, SCALE).check()
    with pytest.raises(ValueError, match="give another --out"):
        Bench(bench.base, bench.other, tmp_path, Scale()).check()
