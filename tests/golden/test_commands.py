"""What commands write and say about tiny models."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparsify_crosscoder.evaluation.toy import ToyConfig, presets
from tests.golden.compare import contents, file_names
from tests.golden.tiny import in_words, normalised, ours

REL = 0.02
LENIENT = ["--predictability", "9", "--shadow", "99", "--min_firings", "5", "--pairs", "3000"]
STEERED = ["--prompts", "In 1989", "--strengths", "0", "1"]
ON_CPU = ["--device", "cpu", "--model_dtype", "float32"]


@pytest.fixture(scope="session")
def stitching(place) -> Path:
    """The maps between both models."""
    options = ["--pairs", "500", "--held_out_pairs", "150", "--steps", "5"]
    made = ["stitch", place / "run", "--out", place / "maps", *options]
    said = ours(*made, "--json", place / "stitch.json")
    (place / "stitch.out").write_text(said, encoding="utf-8")
    return place / "maps"


@pytest.fixture(scope="session")
def vector(place) -> Path:
    """The direction of a trait in the first model."""
    out = ["--out", place / "v.safetensors", "--layers", "1", *ON_CPU]
    said = ours(
        *["persona", place / "base", place / "persona.json", *out],
        *["--max_new_tokens", "4", "--json", place / "persona_found.json"],
    )
    (place / "persona.out").write_text(said, encoding="utf-8")
    return place / "v.safetensors"


@pytest.fixture
def compared(golden, place):
    """Compares a JSON file and what was printed with the golden ones."""

    def compared(name: str, file: Path, said: str | None = None, *, shape: tuple = ()) -> Any:
        found = json.loads(file.read_text(encoding="utf-8"))
        golden.json(f"commands/{name}", normalised(found, place), rel=REL, shape=shape)
        if said is not None:
            golden.text(f"commands/{name}", in_words(said, place))
        return found

    return compared


def test_harvest(place, compared):
    compared("harvest", place / "harvest.json")


def test_store(place, compared):
    out = place / "held.json"
    said = ours("store", place / "store", "--verify", "--show", "0", "7", "--json", out)
    compared("store", out, said)


def test_train(place, compared):
    said = (place / "run.out").read_text(encoding="utf-8")
    compared("train", place / "run.json", said[said.index("\nrdfc with") :])
    compared("summary", place / "run/summary.json")


def test_a_runs_options(place, compared):
    compared("config", place / "run/config.json")


def test_a_runs_files(place, golden):
    golden.json("commands/run_files", file_names(place / "run"))
    lines = (place / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    golden.json("commands/metrics", [list(json.loads(line)) for line in lines])
    states = {}
    for file in sorted((place / "run").rglob("*")):
        if file.suffix in (".pt", ".safetensors") and file.name != "sae.safetensors":
            states[file.relative_to(place / "run").as_posix()] = contents(file)
    golden.json("commands/states", states)


def test_top(place, compared):
    out = place / "top.json"
    ours("top", place / "run", "--pairs", "500", "--latents", "0", "63", "--json", out)
    compared("top", out, shape=(r"/\d+/.*",))


LISTS = ("/rows", "/clusters", "/latents", "/residuals")


def test_filter(place, compared):
    out = place / "found.json"
    said = ours("filter", place / "run", *LENIENT, "--json", out)
    compared("filter", out, said, shape=(*LISTS, "/not_scorable", "/verdicts"))


def test_stability(place, compared):
    out = place / "stable.json"
    said = ours("stability", place / "run", place / "second", *LENIENT, "--json", out)
    compared("stability", out, said, shape=("/clusters", "/matched"))


def test_graft(place, compared):
    out = place / "grafted.json"
    ours("graft", place / "run", "--texts", "3", "--device", "cpu", "--json", out)
    compared("graft", out, shape=("/models/.*",))


def test_stitch(stitching, place, compared, golden):
    compared("stitch", place / "stitch.json", (place / "stitch.out").read_text(encoding="utf-8"))
    compared("stitch_cfg", stitching / "cfg.json")
    golden.json("commands/stitch_files", {f.name: contents(f) for f in stitching.glob("*.safe*")})


def test_steer(stitching, place, compared):
    out = place / "steered.json"
    latents = ["--latents", "63", "--s_max", "2", "--stitching", stitching]
    ours(
        *["steer", place / "run", *latents, *STEERED, *ON_CPU],
        *["--max_new_tokens", "2", "--json", out],
    )
    compared("steer", out)


def test_steer_by_a_vector(vector, place, compared):
    out = place / "steered_by_a_vector.json"
    ours("steer", "--vector", vector, *STEERED, *ON_CPU, "--max_new_tokens", "2", "--json", out)
    compared("steer_vector", out)


def test_persona(vector, place, compared, golden):
    said = (place / "persona.out").read_text(encoding="utf-8")
    compared("persona", place / "persona_found.json", said)
    golden.json("commands/persona_file", contents(vector))


def test_transfer(vector, place, compared):
    out = place / "moved.json"
    moved = ["--out", place / "w.safetensors", "--num_latents", "2", "--controls", "2"]
    options = [*moved, *STEERED, *ON_CPU, "--words", "the"]
    said = ours("transfer", place / "run", vector, *options, "--json", out)
    compared("transfer", out, said)


def test_toy(place, compared, golden, monkeypatch):
    toy = ToyConfig(num_concepts=24, width=16, exclusive_ratio=0.25, mean_active=2.0, decay=0.0)
    tiny = replace(
        presets.SMALL,
        toy=toy,
        sizes=(1.0,),
        num_steps=20,
        pairs_per_step=256,
        num_snapshots=2,
        evaluation_pairs=4_096,
    )
    monkeypatch.setitem(presets.PRESETS, "tiny", tiny)
    out = ["--preset", "tiny", "--out", place / "toy", "--seeds", "1", "--jobs", "1"]
    said = ours("toy", *out, "--variants", "dfc-10%", "--json", place / "toy.json")
    compared("toy", place / "toy.json", said)
    golden.json("commands/toy_files", file_names(place / "toy"))
