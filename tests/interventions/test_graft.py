"""Reconstructions in place of activations, against forwards that are made by hand."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from sparsify_crosscoder import GraftConfig, Run
from sparsify_crosscoder.__main__ import main
from sparsify_crosscoder.evaluation.false_exclusives import called_exclusive
from sparsify_crosscoder.interventions.graft import ReadPairs, graft
from sparsify_crosscoder.interventions.graft_text import text_to_graft
from sparsify_crosscoder.interventions.grafting import Graft, GraftedReader, expected, sums_by_text
from sparsify_crosscoder.runs.models import load_run_sources
from sparsify_crosscoder.runs.texts import load_windows, split_run_windows

TEXTS = 6


@pytest.fixture(scope="module")
def opened(run) -> Run:
    return Run.open(run)


@pytest.fixture(scope="module")
def read(opened):
    """The run's sources with heads, and what they and the crosscoder make of some texts."""
    sources = load_run_sources(opened.config, torch.device("cpu"), "on")
    text = text_to_graft(opened, sources, TEXTS)
    return sources, ReadPairs.of(opened, opened.crosscoder(), sources, text)


def by_hand(model, hookpoint, ids, positions, values):
    """Log-probabilities of a whole language model with values put at positions, `[T - 1, W]`."""

    def put(module, args, output):
        hidden = (output if isinstance(output, torch.Tensor) else output[0]).clone()
        hidden[0, positions] = values.to(hidden.dtype)
        return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

    handle = model.base_model.get_submodule(hookpoint).register_forward_hook(put)
    try:
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
    finally:
        handle.remove()
    return logits.float().log_softmax(-1)


def test_texts_are_whole_texts_that_the_run_held_out(opened, read):
    sources, pairs = read
    windows, _ = load_windows(opened.config, sources)
    trained, held_out = split_run_windows(opened.config, windows)
    ids = pairs.text.windows["text_id"][:]
    assert pairs.text.held_out and len(set(ids)) == TEXTS
    assert set(ids) <= set(windows.select(held_out)["text_id"])
    assert not set(ids) & set(windows.select(trained)["text_id"])
    with pytest.raises(ValueError, match="--texts must be at least 2"):
        text_to_graft(opened, sources, 1)


@pytest.mark.parametrize("source", [0, 1])
def test_strength_zero_changes_no_bit_and_leaves_nothing_between_the_models(read, source):
    sources, pairs = read
    reader = GraftedReader(sources[source], source, pairs.text, 4)
    everywhere = torch.ones_like(pairs.usual)
    values = torch.full((len(everywhere), sources[source].width), 7.0)
    nothing = reader.states(Graft(values, everywhere, 0.0))
    assert torch.equal(nothing.states, reader.own.states)
    nowhere = reader.states(Graft(values, ~everywhere))
    assert torch.equal(nowhere.states, reader.own.states)
    half = reader.states(Graft(values, everywhere, 0.5))
    assert not torch.equal(half.states, reader.own.states)
    head, tokens = sources[source].head, pairs.text.next_tokens(source)
    found = expected(tokens, (head, reader.own), [(head, nothing), (head, half)])
    assert torch.equal(found.losses[0], found.losses[1])
    assert not found.kl[0].any() and found.kl[1].any()


@pytest.mark.parametrize("source", [0, 1])
def test_losses_and_divergences_are_those_of_a_whole_model_changed_by_hand(opened, read, source):
    sources, pairs = read
    end, text = opened.ends[source], pairs.text
    dtype = sources[source].model.dtype
    model = AutoModelForCausalLM.from_pretrained(end.model, dtype=dtype).eval()
    reader = GraftedReader(sources[source], source, text, 4)
    values, head = pairs.reconstruction(source), sources[source].head
    tokens = text.next_tokens(source)
    states = reader.states(Graft(values, pairs.usual))
    found = expected(tokens, (head, reader.own), [(head, states)])
    pair = 0
    for number, (ids, places) in enumerate(
        zip(text.windows[f"input_ids_{source}"], text.windows[f"pairs_{source}"], strict=True)
    ):
        usual = pairs.usual[pair : pair + len(places)]
        put = values[pair : pair + len(places)][usual]
        pair += len(places)
        with torch.inference_mode():
            plain = by_hand(model, end.hookpoint, ids, [], values[:0])
            other = by_hand(model, end.hookpoint, ids, torch.tensor(places)[usual], put)
        mine = tokens.texts == number
        following = torch.tensor(ids[1:])[:, None]
        for row, wanted in enumerate((plain, other)):
            loss = -wanted.gather(1, following)[:, 0]
            torch.testing.assert_close(found.losses[row, mine], loss, atol=2e-2, rtol=2e-2)
        kl = (plain.exp() * (plain - other)).sum(1)
        torch.testing.assert_close(found.kl[0, mine], kl, atol=2e-2, rtol=5e-2)
    assert pair == len(pairs.usual)


def test_a_reconstruction_is_the_crosscoders_own_and_without_latents_lacks_what_they_write(
    opened, read
):
    _, pairs = read
    crosscoder = pairs.crosscoder
    whole = crosscoder(pairs.raw).sae_out
    for s, columns in enumerate(crosscoder.columns):
        torch.testing.assert_close(pairs.reconstruction(s), whole[:, columns].float())
        mine = called_exclusive(crosscoder)[s]
        acts = torch.cat([code.to_dense() for code in pairs.codes])[:, mine]
        assert acts.any()
        written = acts @ crosscoder.decoder(s)[mine] / crosscoder.factors[s]
        without = pairs.reconstruction(s, mine)
        torch.testing.assert_close(pairs.reconstruction(s) - without, written, atol=1e-4, rtol=1e-3)


def test_what_is_recovered_is_what_zeros_and_the_mean_lose_and_the_reconstruction_does_not(
    opened, read
):
    kept = [latents[:2].tolist() for latents in called_exclusive(opened.crosscoder())]
    found = graft(opened, GraftConfig(TEXTS), kept=kept, device="cpu")
    sources, pairs = read
    for s, one in enumerate(found.models):
        assert one.replaced + one.outliers == len(pairs.usual) < one.tokens
        loss = one.effects["reconstruction"].loss.value
        for name in ("zero", "mean"):
            worst = one.effects[name].loss.value
            assert math.isclose(one.recovered[name].value, (worst - loss) / worst, rel_tol=1e-6)
        for effect in one.effects.values():
            assert effect.kl.low >= 0
            assert effect.loss.low <= effect.loss.value <= effect.loss.high
        left = one.left_out
        assert left["kept"].latents == 2
        assert left["exclusive"].latents == len(called_exclusive(opened.crosscoder())[s])
        assert left["exclusive"].latents < left["shared"].latents
        reader = GraftedReader(sources[s], s, pairs.text, 4)
        head, tokens = sources[s].head, pairs.text.next_tokens(s)
        shared = [
            i for i in range(64) if not any(i in own for own in called_exclusive(pairs.crosscoder))
        ]
        states = reader.states(Graft(pairs.reconstruction(s, torch.tensor(shared)), pairs.usual))
        change = expected(tokens, (head, reader.own), [(head, states)]).losses[1].mean()
        whole = float(change) - one.loss.value - loss
        assert math.isclose(left["shared"].effect.loss.value, whole, abs_tol=1e-4)


def test_at_strength_zero_every_effect_of_the_command_is_zero(run, tmp_path, capsys):
    file = tmp_path / "graft.json"
    options = ["--texts", "3", "--strength", "0", "--device", "cpu", "--json", str(file)]
    main(["graft", str(run), *options])
    said = capsys.readouterr().out
    assert "3 texts held out by the run, at strength 0" in said
    told = json.loads(file.read_text(encoding="utf-8"))
    assert [one["name"] for one in told["models"]] == ["llama", "gpt2"]
    for one in told["models"]:
        assert one["left_out"]["kept"]["latents"] <= one["left_out"]["exclusive"]["latents"]
        for effect in one["effects"].values():
            zero = {"value": 0.0, "low": 0.0, "high": 0.0}
            assert effect == {"loss": zero, "kl": zero}


def test_sums_by_text_keep_texts_apart():
    values = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.0, 4.0]])
    found = sums_by_text(values, torch.tensor([0, 1, 1]))
    assert found.tolist() == [[1.0, 0.5], [5.0, 4.0]]
