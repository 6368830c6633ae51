"""Which of a run's models a vector or a stitching is of."""

import logging
import shutil

import pytest
import torch

from sparsify_crosscoder.__main__ import main
from sparsify_crosscoder.harvest.model_identity import checkpoint_digest
from sparsify_crosscoder.interventions.stitching import Stitching
from sparsify_crosscoder.interventions.vector_source import source_of
from sparsify_crosscoder.interventions.vectors import SteeringVector
from sparsify_crosscoder.runs.models import End
from tests.support.models import change_a_value, save_tiny_model
from tests.support.tokenizers import byte_level_tokenizer

BASE, SFT = "xxh3-128:base", "xxh3-128:sft"
ENDS = [
    End("/w/base/final", None, "layers.1", BASE),
    End("/w/sft/final", None, "layers.1", SFT),
]


def vector(model, checkpoint=None, hookpoint="layers.1", revision=None):
    return SteeringVector(torch.ones(4), model, hookpoint, checkpoint=checkpoint, revision=revision)


@pytest.mark.parametrize(
    ("of", "source"),
    [
        (vector("/w/sft/final", SFT), 1),
        (vector("/moved/elsewhere", SFT), 1),
        (vector("/w/sft/final", BASE), 0),  # the folders changed places
        (vector("/w/sft/final"), 1),  # of an earlier version: by its name
        (vector("/w/sft/./final/"), 1),
    ],
)
def test_a_vector_is_of_the_model_that_has_its_weights(of, source):
    assert source_of(ENDS, of) == source


@pytest.mark.parametrize(
    ("of", "reason"),
    [
        (vector("/w/other/final"), "say with --source"),
        (vector("final"), "say with --source"),
        (vector("/w/base/final", "xxh3-128:other"), "had other weights when the vector was made"),
        (vector("/w/base/final", BASE, "layers.2"), "Make the vector at the run's hookpoint"),
    ],
)
def test_a_vector_of_another_model_is_refused(of, reason):
    with pytest.raises(ValueError, match=reason):
        source_of(ENDS, of)


def test_two_revisions_of_one_model_are_told_apart_without_digests_too():
    ends = [End("org/m", commit * 40, "layers.1") for commit in "ab"]
    assert source_of(ends, vector("org/m", revision="b" * 40)) == 1
    with pytest.raises(ValueError, match="2 of these are that model"):
        source_of(ends, vector("org/m"))


def test_a_vectors_file_says_which_weights_it_is_of(tmp_path):
    vector("org/m", SFT, revision="b" * 40).save(tmp_path / "v.safetensors")
    found = SteeringVector.load(tmp_path / "v.safetensors")
    assert (found.checkpoint, found.revision) == (SFT, "b" * 40)
    vector("org/m").save(tmp_path / "v.safetensors")
    found = SteeringVector.load(tmp_path / "v.safetensors")
    assert (found.checkpoint, found.revision) == (None, None)


def test_a_model_that_has_changed_since_is_not_steered(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = save_tiny_model(tmp_path / "final", "llama", byte_level_tokenizer(), width=16, layers=2)
    direction = torch.ones(16)
    made = SteeringVector(
        direction, str(model), "layers.1", checkpoint=checkpoint_digest(str(model))
    )
    made.save(tmp_path / "v.safetensors")
    argv = ["steer", "--vector", str(tmp_path / "v.safetensors"), "--strengths", "1"]
    argv += ["--prompts", "The", "--max_new_tokens", "1", "--device", "cpu", "--backend", "hooks"]
    main(argv)
    shutil.copytree(model, tmp_path / "moved")
    change_a_value(model)
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 1
    assert f"'{model}' has other weights or settings now" in capsys.readouterr().err
    main([*argv, "--model", str(tmp_path / "moved")])  # the one that the vector is of


def stitched(**own):
    source = {"hookpoint": "layers.1", "width": 4}
    return Stitching({}, sources=[{**source, **own}, {**source, "name": "b", "checkpoint": SFT}])


def test_a_stitching_of_other_weights_is_refused(caplog):
    run = [
        {"name": "/w/a", "hookpoint": "layers.1", "width": 4, "checkpoint": BASE},
        {"name": "/w/b", "hookpoint": "layers.1", "width": 4, "checkpoint": SFT},
    ]
    stitched(name="/moved/a", checkpoint=BASE).check_sources(run)
    stitched(name="/w/a").check_sources(run)
    with pytest.raises(ValueError, match="'/w/a', has other weights"):
        stitched(name="/w/a", checkpoint=SFT).check_sources(run)
    with caplog.at_level(logging.WARNING):
        stitched(name="/elsewhere/a").check_sources(run)
    assert "cannot be checked" in caplog.text
