"""What the explorer answers: the run's own tokens, latents and directions."""

import pytest
import torch

from delphi_adapters.explorer.audited import open_run
from delphi_adapters.explorer.explorer import Explorer
from sparsify_crosscoder import align_tokens
from sparsify_crosscoder.evaluation.top import top
from sparsify_crosscoder.interventions.generation import Sampling, generate
from sparsify_crosscoder.interventions.steering import Steering
from sparsify_crosscoder.runs.run import Run
from tests.support.tokenizers import SENTENCES

SENTENCE = SENTENCES[0].format(n=7, m=1900)


@pytest.fixture(scope="module")
def explorer(run):
    return Explorer(Run.open(run), pairs=4000, device="cpu")


def exclusive(explorer, source):
    """A latent that one model alone has, which fires."""
    block = explorer.crosscoder.partition.exclusive(source)
    return max(block, key=lambda latent: float(explorer.largest[latent]))


def test_a_sentence_is_paired_as_the_runs_texts_are(explorer):
    found = explorer.read(SENTENCE)
    tokenizers = [source.tokenizer for source in explorer.sources]
    aligned = align_tokens(SENTENCE, tokenizers)
    places = list(zip(*aligned.indices, strict=True))
    paired = [pair for pair in places if min(pair) > 0]  # a window's first token never pairs
    assert len(found) == len(paired) > 5
    for s, tokenizer in enumerate(tokenizers):
        shown = [token for pair in found for token in pair.tokens[s]]
        read = aligned.input_ids[s][: aligned.indices[s][-1] + 1]
        assert shown == [tokenizer.decode([one]) for one in read]


def test_the_latents_of_a_pair_are_the_strongest_of_each_block(explorer):
    found = explorer.read(SENTENCE, strongest=2)
    aligned = align_tokens(SENTENCE, [source.tokenizer for source in explorer.sources])
    hidden = []
    with torch.no_grad():
        for (model, _), end, ids in zip(
            explorer.models, explorer.run.ends, aligned.input_ids, strict=True
        ):
            layer = int(end.hookpoint.rpartition(".")[2])
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            hidden.append(states[layer + 1][0])
        paired = [pair for pair in zip(*aligned.indices, strict=True) if min(pair) > 0]
        raw = [x[list(places)] for x, places in zip(hidden, zip(*paired, strict=True), strict=True)]
        dense = explorer.crosscoder.encode_sparse(raw).to_dense()
    for pair, acts in zip(found, dense, strict=True):
        for block in explorer.crosscoder.partition.blocks:
            values = sorted(acts[block.start : block.stop].tolist(), reverse=True)[:2]
            expected = [value for value in values if value > 0]
            shown = [a.activation for a in pair.latents if a.block == block.name]
            assert shown == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("sentence", ["", "  \n"])
def test_an_empty_sentence_is_refused(explorer, sentence):
    with pytest.raises(ValueError, match="Type a sentence"):
        explorer.read(sentence)


def test_contexts_are_those_of_top(explorer, run):
    latent = exclusive(explorer, 1)
    (expected,) = top(Run.open(run), latents=[latent], pairs=4000, device="cpu").reports
    view = explorer.latent(latent)
    assert view.report == expected
    assert expected.snippets and view.facts == [] and view.coherent is None


def test_an_unknown_latent_is_refused(explorer):
    with pytest.raises(ValueError, match=r"There are latents 0\.\.63, not 64"):
        explorer.latent(64)
    with pytest.raises(ValueError, match="not 64"):
        explorer.steer(64, 1.0, "The sea")


def test_a_shared_latent_steers_both_models_by_their_own_decoders(explorer):
    shared = explorer.crosscoder.partition.shared
    latent = max(shared, key=lambda one: float(explorer.largest[one]))
    found = explorer.steer(latent, 8.0, "The sea", tokens=6)
    for s, (one, (model, tokenizer)) in enumerate(zip(found, explorer.models, strict=True)):
        steering = Steering.of_latent(
            explorer.crosscoder, latent, s, float(explorer.largest[latent])
        )
        own = generate(
            model, "The sea", steering, [0.0, 8.0], Sampling(6), tokenizer=tokenizer
        ).texts()
        assert [one.before, one.after] == own
        assert one.refused is None


def test_an_exclusive_latent_without_a_map_steers_its_own_model_alone(explorer):
    own, other = explorer.steer(exclusive(explorer, 0), 8.0, "The sea", tokens=4)
    assert own.refused is None and own.before != own.after
    assert "write nothing to" in other.refused and (other.before, other.after) == ("", "")


def test_strength_0_changes_nothing(explorer):
    own, _ = explorer.steer(exclusive(explorer, 0), 0.0, "The sea", tokens=4)
    assert own.before == own.after


def test_a_latent_that_never_fires_cannot_be_steered_with(explorer, monkeypatch):
    monkeypatch.setattr(explorer, "largest", torch.zeros(64))
    with pytest.raises(ValueError, match="Latent 5 never fires on the first 4,000 pairs"):
        explorer.steer(5, 1.0, "The sea")


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        open_run(tmp_path)
