"""`python -m delphi_adapters rubric` on a trained run, with real steering and the real SDK."""

import json
import re

import pytest
import torch
import yaml

from delphi_adapters.__main__ import COMMANDS
from delphi_adapters.commands.rubric import main
from delphi_adapters.judging.rubric_runs import load_items
from delphi_adapters.judging.rubrics import Rubric
from sparsify_crosscoder import Crosscoder, fit_stitching
from sparsify_crosscoder.harvest.sources import load_language_model
from sparsify_crosscoder.interventions.generation import Sampling, generate
from sparsify_crosscoder.interventions.steering import Steering
from sparsify_crosscoder.interventions.stitching import Stitching, StitchingConfig
from sparsify_crosscoder.store.tensor_stream import TensorStream
from tests.support.messages_server import message
from tests.support.rating_judge import RatingJudge, score_of

LATENT = 1  # exclusive to the first model
S_MAX = 3.0
RUBRIC = {
    "name": "rivers",
    "description": "People asked about rivers.",
    "strengths": [-2, 0, 2],
    "generation": {"max_new_tokens": 6},
    "dimensions": [
        {
            "label": label,
            "question": "How much?",
            "levels": {1: "None.", 2: "Little.", 3: "Some.", 4: "Much.", 5: "All."},
        }
        for label in ("RIVERS", "COHERENCE")
    ],
    "examples": [
        {
            "prompt": "Hm?",
            "response": "The Rhine.",
            "scores": {"RIVERS": 5, "COHERENCE": 5},
            "reason": "It is one.",
        }
    ],
    "prompts": ["The quick brown", "In 1989 the", "A river is", "They went to"],
}
COUNT = 12  # answers of one model


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def stitching(run, tmp_path_factory):
    x = torch.randn(1000, 24)
    pairs = TensorStream([x, x @ torch.randn(24, 32)], seed=0)
    held_out = TensorStream([x[:500], x[:500] @ torch.randn(24, 32)], seed=0)
    folder = tmp_path_factory.mktemp("stitching") / "maps"
    fit_stitching(pairs, held_out, StitchingConfig(steps=0)).save(folder)
    return folder


@pytest.fixture
def options(run, server, tmp_path, monkeypatch):
    """Options of a run with a judge on the loopback server; results go to `tmp_path/out`."""
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    server.answer = RatingJudge()
    (tmp_path / "rubric.yaml").write_text(yaml.safe_dump(RUBRIC), encoding="utf-8")
    (tmp_path / "prices.json").write_text(
        '{"claude-test": {"input": 1.0, "output": 10.0}}', encoding="utf-8"
    )
    return {
        "--latent": LATENT,
        "--rubric": tmp_path / "rubric.yaml",
        "--judge": "claude-test",
        "--max_cost": 100,
        "--prices": tmp_path / "prices.json",
        "--out": tmp_path / "out",
        "--s_max": S_MAX,
        "--backend": "hooks",
        "--device": "cpu",
        "--model_dtype": "float32",
        "run": run,
    }


def rubric(options, *more, **other):
    values = {**options, **{f"--{name}": value for name, value in other.items()}}
    run = values.pop("run")
    given = [str(x) for pair in values.items() if pair[1] is not None for x in pair]
    main([str(run), *given, *map(str, more)])


def results(options):
    return json.loads((options["--out"] / "results.json").read_text(encoding="utf-8"))


def failure(capsys, options, *more, **other):
    with pytest.raises(SystemExit) as stop:
        rubric(options, *more, **other)
    assert stop.value.code == 1
    return capsys.readouterr().err


def test_both_models_are_steered_rated_and_drawn(options, run, stitching, server, tmp_path, capsys):
    rubric(options, stitching=stitching, json=tmp_path / "result.json")
    found = results(options)
    assert found["models"] == ["llama", "gpt2"]
    assert found["counts"]["gpt2"] == {"ok": COUNT, "unparsable": 0, "failed": 0}
    # What the models said is what generate gives for the latent's own and its stitched vector.
    crosscoder = Crosscoder.load_one(run)
    own = Steering.of_latent(crosscoder, LATENT, 0, S_MAX)
    mapped = Stitching.load(stitching).direction(own.vector, 0)
    steering = {"llama": own, "gpt2": Steering(mapped, "h.2", S_MAX)}
    items = load_items(options["--out"])
    for name, one in steering.items():
        model, tokenizer = load_language_model(
            str(run.parent / name), device=torch.device("cpu"), dtype="float32"
        )
        said = generate(model, RUBRIC["prompts"], one, [-2, 0, 2], Sampling(6), tokenizer=tokenizer)
        texts = {a.text for row in said.answers for a in row}
        assert len(texts) > 4
        assert {item.answer for item in items.values() if item.model == name} == texts
        means = found["dimensions"]["RIVERS"]["curves"][name]["mean"]
        for k, mean in enumerate(means):
            assert mean == pytest.approx(sum(score_of(row[k].text) for row in said.answers) / 4)
    assert found["dimensions"]["COHERENCE"]["curves"]["llama"]["mean"] == [5, 5, 5]
    assert found["s_max"] == S_MAX and found["targets"]["gpt2"]["hookpoint"] == "h.2"
    assert found["ledger"]["spent"] > 0
    out = options["--out"]
    table = (out / "table.md").read_text(encoding="utf-8")
    assert "| Strength | llama | gpt2 |" in table and table.strip() in capsys.readouterr().out
    assert (out / "dose_response.png").read_bytes().startswith(b"\x89PNG")
    assert Rubric.load(out / "rubric.yaml") == Rubric.load(options["--rubric"])
    assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8")) == found


def test_a_second_start_generates_and_asks_nothing(options, server, monkeypatch):
    rubric(options)
    first, asked = results(options), len(server.bodies)

    def no_model(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("sparsify_crosscoder.runs.models.load_language_model", no_model)
    rubric(options)
    second = results(options)
    assert len(server.bodies) == asked
    assert second["dimensions"] == first["dimensions"]


def test_a_run_killed_while_answering_goes_on(options, server, monkeypatch):
    import delphi_adapters.judging.rubric_answers as module

    rubric(options, out=options["--out"].with_name("whole"))
    generated = []

    def stumbling(model, prompts, *rest, **more):
        generated.append(list(prompts))
        if len(generated) == 3:
            raise KeyboardInterrupt
        return generate(model, prompts, *rest, **more)

    monkeypatch.setattr(module, "generate", stumbling)
    with pytest.raises(SystemExit, match="130"):
        rubric(options)
    rubric(options)
    assert generated == [[p] for p in (*RUBRIC["prompts"][:3], *RUBRIC["prompts"][2:])]
    whole = load_items(options["--out"].with_name("whole"))
    assert load_items(options["--out"]) == whole


def test_a_budget_stops_the_run_and_a_larger_one_finishes_it(options, server, capsys):
    # A request reserves its longest answer and costs about a fifth of that.
    assert "stopped" in failure(capsys, options, "--concurrency", 1, max_cost=0.013)
    stopped_at = len(server.bodies)
    assert 0 < stopped_at < COUNT
    assert not (options["--out"] / "results.json").exists()
    rubric(options)
    assert results(options)["counts"]["llama"]["ok"] == COUNT
    sent = server.sent()
    assert max(sent.values()) == 1 and len(server.bodies) <= COUNT


def test_prompts_and_strengths_can_be_fewer_and_then_more(options, server):
    rubric(options, "--strengths", 0, 2, prompts_limit=2)
    assert results(options)["strengths"] == [0, 2] and results(options)["prompts"] == 2
    asked = len(server.bodies)
    assert asked <= 4
    rubric(options, "--strengths", 0, 2, -2, batch_size=6)
    assert results(options)["counts"]["llama"]["ok"] == COUNT
    assert max(server.sent().values()) == 1
    whole = options["--out"].with_name("whole")
    rubric(options, out=whole)
    assert load_items(whole) == load_items(options["--out"])


def test_a_folder_of_another_steering_is_refused(options, server, stitching, capsys):
    rubric(options, prompts_limit=1)
    asked = len(server.bodies)
    before = (options["--out"] / "config.json").read_bytes()
    assert "latent" in failure(capsys, options, latent=2)
    assert "s_max" in failure(capsys, options, s_max=2)
    assert "sampling" in failure(capsys, options, max_new_tokens=3)
    assert "mode" in failure(capsys, options, mode="ablate")
    assert len(server.bodies) == asked
    assert (options["--out"] / "config.json").read_bytes() == before
    rubric(options, prompts_limit=1, stitching=stitching)  # a partner may be added
    rubric(options, prompts_limit=1, s_max=None)  # and what s_max was is kept


def test_s_max_is_looked_for_where_it_is_not_given(options, run):
    from sparsify_crosscoder.evaluation.top import largest_activations
    from sparsify_crosscoder.runs.run import Run

    crosscoder = Crosscoder.load_one(run)
    chunks = Run.open(run).first_pairs(500, "cpu").chunks
    largest = largest_activations(crosscoder, chunks, torch.arange(crosscoder.num_latents))
    latent = int(largest.argmax())
    rubric(options, latent=latent, s_max=None, pairs=500, prompts_limit=1)
    assert results(options)["s_max"] == pytest.approx(float(largest[latent]), rel=1e-4)


def test_a_dry_run_says_what_it_costs_and_does_nothing(options, server, stitching, capsys):
    rubric(options, "--dry_run", max_cost=None, stitching=stitching)
    printed = capsys.readouterr().out
    assert "4 prompts x 3 strengths x 2 models" in printed
    assert "24 requests" in printed and "$" in printed
    assert not server.bodies
    assert not (options["--out"] / "generations").exists()


def test_ratings_that_cannot_be_read_are_reported(options, server, capsys):
    judge = server.answer
    server.answer = lambda body: message("No.") if "In 1989" in str(body) else judge(body)
    rubric(options, prompts_limit=2)
    assert results(options)["counts"]["llama"] == {"ok": 3, "unparsable": 3, "failed": 0}
    assert results(options)["dimensions"]["RIVERS"]["curves"]["llama"]["n"] == [1, 1, 1]
    assert "3 rated, 3 unparsable" in capsys.readouterr().out


def test_a_judge_that_rates_nothing_fails_the_command(options, server, capsys):
    server.answer = lambda body: message("No.")
    assert "none of 3 answers could be rated" in failure(capsys, options, prompts_limit=1)
    assert results(options)["dimensions"]["RIVERS"]["curves"]["llama"]["mean"] == [None] * 3


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ({"rubric": "politics"}, "no rubric 'politics'.*ccp_alignment"),
        ({"latent": 64}, "latents 0..63"),
        ({"prompts_limit": 0}, "At least one prompt"),
        ({"strengths": "nan"}, "finite"),
        ({"max_cost": None}, "--max_cost"),
        ({"stitching": "nowhere"}, "nowhere"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_asked(
    options, server, capsys, other, problem
):
    assert re.search(problem, failure(capsys, options, **other))
    assert not server.bodies
    assert not (options["--out"] / "generations").exists()


def test_the_command_is_among_the_subcommands():
    assert COMMANDS["rubric"][:2] == (main.__module__, main.__name__)
