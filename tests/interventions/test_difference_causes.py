"""`filter --verify`: a planted shift is verified, and what cannot be verified is said at once."""

import json
from dataclasses import replace

import pytest

from sparsify_crosscoder import Run
from sparsify_crosscoder.commands import filter as filter_command
from sparsify_crosscoder.evaluation.differences import crosscoder_differences
from sparsify_crosscoder.evaluation.false_exclusives import FilterConfig
from sparsify_crosscoder.interventions import difference_causes
from sparsify_crosscoder.interventions.cause import CauseSettings
from sparsify_crosscoder.interventions.difference_causes import (
    prompts_kept_out,
    verify_differences,
)
from sparsify_crosscoder.interventions.random_directions import random_directions
from tests.support.shifted_model import run_of_a_shift


@pytest.fixture(scope="module")
def shifted(tmp_path_factory):
    return run_of_a_shift(tmp_path_factory.mktemp("shifted"))


@pytest.fixture(scope="module")
def opened(shifted):
    return Run.open(shifted)


@pytest.fixture(scope="module")
def kept_out(opened):
    return prompts_kept_out(opened, opened.crosscoder(device="cpu"))


@pytest.fixture(scope="module")
def listed(opened, kept_out):
    crosscoder = opened.crosscoder(device="cpu")
    config = FilterConfig(outlier_multiple=opened.config.outlier_multiple)
    return crosscoder_differences(opened, crosscoder, config, leave_out=[*kept_out])


def test_the_list_does_not_read_the_prompts_kept_out(opened, kept_out, listed):
    texts = opened.texts()["text"]
    assert 0.1 * len(texts) < len(kept_out) < 0.5 * len(texts)
    assert all(texts[number].startswith(prompt) for number, prompt in kept_out.items())
    assert listed.texts == len(texts) - len(kept_out)


def test_the_planted_direction_is_verified_and_another_is_not(opened, kept_out, listed):
    crosscoder = opened.crosscoder(device="cpu")
    base, tokenizer = opened.loading("cpu").load_end(opened.ends[0])
    mark = base.lm_head.weight[tokenizer("?")["input_ids"][-1]]
    planted = replace(listed.entries[0], latent=None, members=(), direction=8 * mark)
    other = random_directions(planted.direction, 1, seed=3)[0]
    found = verify_differences(
        opened,
        crosscoder,
        [planted, replace(planted, rank=2, direction=other)],
        kept_out,
        CauseSettings(strengths=(1.0,), spans=("hookpoint",), chat=False),
    )
    assert found[1].verified and not found[2].verified
    assert found[1].sentences[1].startswith("verified: ablating it lowers")
    assert all(line.startswith("not verified: ") for line in found[2].sentences)
    none = verify_differences(opened, crosscoder, [planted], dict([*kept_out.items()][:3]))
    assert none[1].sentences == [
        "not verified: of the prompts that the list did not read, 0 have it and are answered "
        "otherwise by the two models; 4 are needed."
    ]


def test_filter_says_of_its_first_findings_what_they_cause(shifted, tmp_path, capsys, monkeypatch):
    quick = CauseSettings(strengths=(1.0,), spans=("hookpoint",), random=3, chat=False)
    monkeypatch.setattr(difference_causes, "SETTINGS", quick)
    file = tmp_path / "found.json"
    words = [str(shifted), "--verify", "1", "--device", "cpu", "--json", str(file)]
    filter_command.main(words)
    said, found = capsys.readouterr().out, json.loads(file.read_text(encoding="utf-8"))
    first, *others = found["rows"]
    assert not any("verification" in row for row in others)
    verification = first["verification"]
    assert [one["kind"] for one in verification["causes"]] == ["adds", "ablates"]
    assert verification["answers"] >= 4
    for sentence in verification["sentences"]:
        assert f"      {sentence}\n" in said


@pytest.mark.parametrize(
    "which, verify, told",
    [
        ("run", "1", "differ in their architecture"),
        ("twins", "1", "at least 4 are needed. Leave --verify off, or take more texts"),
        ("twins", "-1", "--verify is a number of findings, not -1"),
    ],
)
def test_what_cannot_be_verified_is_said_before_the_list(which, verify, told, request, capsys):
    folder = request.getfixturevalue(which)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        filter_command.main([str(folder), "--verify", verify, "--device", "cpu"])
    said = capsys.readouterr()
    assert told in said.err and not said.out
