"""The commands steer, persona and transfer on a small run, as a user types them."""

import json

import nnsight
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sparsify_crosscoder import Crosscoder, Stitching, fit_stitching
from sparsify_crosscoder.__main__ import main
from sparsify_crosscoder.evaluation.top import collect_occurrences
from sparsify_crosscoder.interventions.likeness import common_words, likeness, word_changes
from sparsify_crosscoder.interventions.steering import Steering
from sparsify_crosscoder.interventions.stitching import StitchingConfig
from sparsify_crosscoder.interventions.vectors import SteeringVector, cosine
from sparsify_crosscoder.runs.run import Run
from sparsify_crosscoder.store.tensor_stream import TensorStream

PROMPTS = ["--prompts", "The quick brown", "In 1989"]
SHORT = [*PROMPTS, "--max_new_tokens", "4", "--device", "cpu", "--model_dtype", "float32"]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def crosscoder(run):
    return Crosscoder.load_one(run)


@pytest.fixture(scope="module")
def fired(run, crosscoder):
    """The largest activation of every latent over the run's pairs."""
    chunks = Run.open(run).first_pairs(100_000, "cpu").chunks
    found = collect_occurrences(crosscoder, chunks)
    largest = torch.zeros(crosscoder.num_latents)
    for latent, act in zip(found.latents.tolist(), found.acts.tolist(), strict=True):
        largest[latent] = max(largest[latent], act)
    return largest


@pytest.fixture(scope="module")
def shared(crosscoder, fired):
    return next(i for i in crosscoder.partition.shared if fired[i] > 0)


@pytest.fixture(scope="module")
def stitching(crosscoder, tmp_path_factory):
    x = torch.randn(2000, 24)
    pairs = TensorStream([x, x @ torch.randn(24, 32)], seed=0)
    held_out = TensorStream([x[:500], x[:500] @ torch.randn(24, 32)], seed=0)
    folder = tmp_path_factory.mktemp("stitching") / "maps"
    fit_stitching(pairs, held_out, StitchingConfig(steps=2)).save(folder)
    return folder


def failure(capsys, *argv: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in argv])
    assert stop.value.code == 1
    return capsys.readouterr().err


def test_steering_with_a_latent(run, shared, crosscoder, fired, tmp_path, capsys):
    out, plot = tmp_path / "steer.json", tmp_path / "steer.png"
    argv = ["steer", run, "--latents", shared, "--strengths", "1", "4", "--words", "the", "a"]
    main([str(a) for a in [*argv, *SHORT, "--source", "1", "--plot", plot, "--json", out]])
    printed = capsys.readouterr().out
    result = json.loads(out.read_text(encoding="utf-8"))
    (found,) = result["models"]
    assert found["model"].endswith("gpt2")
    (steering,) = found["steering"]
    # What is loaded from a checkpoint in float32 is what was found over the same pairs.
    assert steering["scale"] == pytest.approx(float(fired[shared]), rel=1e-5)
    decoder = crosscoder.decoder(1)[shared] / crosscoder.factors[1]
    assert steering["norm"] == pytest.approx(decoder.norm().item(), rel=1e-5)
    assert [row["strengths"] for row in found["rows"]] == [[0.0], [1.0], [4.0]]
    assert found["rows"][2]["kl"] > 0
    assert len(found["generations"]["answers"]) == 2
    assert f"latent {shared} at h.2" in printed and "word_probability" in printed
    assert plot.stat().st_size > 10_000


def test_strengths_end_where_answers_are_no_text(run, shared, tmp_path, capsys):
    out = tmp_path / "steer.json"
    argv = ["steer", run, "--latents", shared, "--strengths", "0", "2", "4", "--s_max", "1e-6"]
    main([str(a) for a in [*argv, *SHORT, "--coherent", "--json", out]])
    assert "coherent up to strength 4" in capsys.readouterr().out
    (model,) = json.loads(out.read_text(encoding="utf-8"))["models"]
    assert model["coherence"]["strength"] == 4
    assert [row["strengths"] for row in model["rows"]] == [[0], [2], [4]]


def test_backends_say_the_same(run, shared, tmp_path, monkeypatch):
    nnsight_model, made = nnsight.TransformersModel, []
    monkeypatch.setattr(
        nnsight, "TransformersModel", lambda *a, **b: made.append(a) or nnsight_model(*a, **b)
    )
    argv = ["steer", run, "--latents", shared, "--strengths", "0", "5", "--s_max", "10", *SHORT]
    answers = {}
    for backend, by_nnsight in (("hooks", 0), ("nnsight", 1), ("auto", 1)):
        made.clear()
        out = tmp_path / f"{backend}.json"
        main([str(a) for a in [*argv, "--backend", backend, "--json", out]])
        assert len(made) == by_nnsight
        found = json.loads(out.read_text(encoding="utf-8"))
        answers[backend] = found["models"][0]["generations"]["answers"]
    assert answers["hooks"] == answers["nnsight"] == answers["auto"]
    assert all(plain["text"] != pushed["text"] for plain, pushed in answers["hooks"])


def test_the_stitched_vector_steers_the_other_model(run, shared, stitching, tmp_path, crosscoder):
    out = tmp_path / "steer.json"
    argv = ["steer", run, "--latents", shared, "--strengths", "0", "2", "--s_max", "3"]
    main([str(a) for a in [*argv, *SHORT, "--stitching", stitching, "--json", out]])
    first, second = json.loads(out.read_text(encoding="utf-8"))["models"]
    assert first["model"].endswith("llama") and second["model"].endswith("gpt2")
    assert second["steering"][0]["hookpoint"] == "h.2"
    assert second["steering"][0]["label"] == f"latent {shared}, stitched"
    assert second["steering"][0]["scale"] == 3.0
    unsteered, pushed = json.loads(out.read_text(encoding="utf-8"))["likeness"]
    assert unsteered["correlation"] == unsteered["size"] == 0
    own = (crosscoder.decoder(0)[shared] / crosscoder.factors[0]).detach()
    directions = [own, Stitching.load(stitching).direction(own, 0)]
    names = [run.parent / "llama", run.parent / "gpt2"]
    tokenizers = [AutoTokenizer.from_pretrained(name) for name in names]
    changes = [
        word_changes(
            *(AutoModelForCausalLM.from_pretrained(name), tokenizer, PROMPTS[1:]),
            *([Steering(direction, hookpoint, 3.0)], [2.0], tokens),
        )
        for name, tokenizer, direction, hookpoint, tokens in zip(
            *(names, tokenizers, directions, ("layers.1", "h.2"), common_words(*tokenizers)),
            strict=True,
        )
    ]
    expected = likeness(*changes)
    assert pushed["correlation"] == pytest.approx(expected.correlation, abs=1e-4)
    assert pushed["size"] == pytest.approx(expected.size, rel=1e-3)


def test_a_stitching_of_other_sources_is_refused(run, shared, tmp_path, capsys):
    x = torch.randn(500, 24)
    pairs = TensorStream([x, torch.randn(500, 31)], seed=0)
    fit_stitching(pairs, pairs, StitchingConfig(steps=0)).save(tmp_path / "maps")
    argv = ["steer", run, "--latents", shared, "--s_max", "3", "--stitching", tmp_path / "maps"]
    error = failure(capsys, *argv, *SHORT)
    assert "width 31" in error and "stitch RUN" in error


def test_a_persona_becomes_a_vector_that_steers_and_moves(run, stitching, tmp_path, capsys):
    folder = run.parent
    persona = tmp_path / "persona.json"
    texts = {
        "elicit": ["the quick brown fox", "a lazy dog"],
        "suppress": ["in 1989 the wall", "in 1990"],
    }
    persona.write_text(json.dumps({"trait": "animals", **texts}), encoding="utf-8")
    vector, moved = tmp_path / "v.safetensors", tmp_path / "w.safetensors"
    report = tmp_path / "persona.json.out"
    options = ["--device", "cpu", "--model_dtype", "float32"]
    argv = ["persona", folder / "llama", persona, "--out", vector, "--layers", "1", "2", *options]
    main([str(a) for a in [*argv, "--json", report]])
    assert set(json.loads(report.read_text(encoding="utf-8"))["effects"]) == {
        "layers.1",
        "layers.2",
    }
    main([str(a) for a in [*argv[:4], vector, "--hookpoints", "layers.1", *options]])
    found = SteeringVector.load(vector)
    assert found.hookpoint == "layers.1" and found.provenance["persona"]["trait"] == "animals"

    out = tmp_path / "transfer.json"
    explained = tmp_path / "features.parquet"
    rows = [{"latent": i, "explanation": f"text {i}"} for i in range(64)]
    pq.write_table(pa.Table.from_pylist(rows), explained)
    argv = ["transfer", run, vector, "--out", moved, "--num_latents", "3", "--words", "the"]
    argv += ["--stitching", stitching, "--features", explained, "--controls", "4", *PROMPTS]
    capsys.readouterr()
    main([str(a) for a in [*argv, *options, "--json", out]])
    printed = capsys.readouterr().out
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["latents"][0]["explanation"] == f"text {result['latents'][0]['latent']}"
    assert f"text {result['latents'][0]['latent']}" in printed
    back = SteeringVector.load(moved)
    assert back.model.endswith("gpt2") and back.hookpoint == "h.2"
    assert back.provenance["latents"] == result["latents"]
    effects = result["effects"]
    assert len(effects["random"]) == 4 and len(effects["transferred"]) == 4
    # Strength 0 is the target itself, whoever steers.
    assert effects["stitched"][0] == effects["transferred"][0] == effects["random"][0][0]
    stitched = Stitching.load(stitching).direction(found.vector * found.scale, 0)
    assert abs(result["cosine_with_stitched"]) > 0.01
    assert result["cosine_with_stitched"] == pytest.approx(cosine(back.vector, stitched), abs=1e-6)
    crosscoder = Crosscoder.load_one(run)
    moved_by_hand = sum(
        row["cosine"] * crosscoder.decoder(1)[row["latent"]] for row in result["latents"]
    )
    assert cosine(back.vector, moved_by_hand) == pytest.approx(1, abs=1e-6)
    ratio = crosscoder.factors[0] / crosscoder.factors[1]
    assert back.vector.norm().item() == pytest.approx(float(found.vector.norm() * ratio), rel=1e-4)

    steered = tmp_path / "steer.json"
    argv = ["steer", "--vector", moved, "--strengths", "0", "1", "--json", steered]
    main([str(a) for a in [*argv, *SHORT]])
    assert json.loads(steered.read_text(encoding="utf-8"))["models"][0]["model"].endswith("gpt2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--latents of a RUN, or --vector"),
        (["--latents", "64"], "latents 0..63"),
        (["--latents", "5", "--source", "2"], "sources 0..1"),
        (["--latents", "5", "--tokens", "1:x"], "span"),
        (["--latents", "5", "--tokens", "some", "--s_max", "1"], "Unknown tokens"),
        (["--latents", "5", "--temperature", "-1"], "temperature"),
        (["--latents", "5", "--prompts_file", "nothing.txt"], "nothing.txt"),
        (["--vector", "nothing.safetensors"], "no steering vector"),
    ],
)
def test_wrong_use_of_steer_is_explained(run, options, message, capsys):
    assert message in failure(capsys, "steer", run, *options, "--device", "cpu")


def test_latents_that_never_fire_are_refused(run, shared, capsys):
    assert "never fires" in failure(capsys, "steer", run, "--latents", shared, "--s_max", "0")


def test_a_vector_of_another_hookpoint_is_not_transferred(run, tmp_path, capsys):
    vector = tmp_path / "v.safetensors"
    SteeringVector(torch.ones(24), str(run.parent / "llama"), "layers.3").save(vector)
    out = tmp_path / "w.safetensors"
    error = failure(capsys, "transfer", run, vector, "--out", out, "--device", "cpu")
    assert "layers.3" in error and "--source" in error
    assert not out.exists()


def test_nothing_else_is_overwritten(run, tmp_path, capsys):
    vector, other = tmp_path / "v.safetensors", tmp_path / "notes.txt"
    SteeringVector(torch.ones(24), str(run.parent / "llama"), "layers.1").save(vector)
    other.write_text("mine", encoding="utf-8")
    assert "notes.txt" in failure(capsys, "transfer", run, vector, "--out", other)
    assert other.read_text(encoding="utf-8") == "mine"
