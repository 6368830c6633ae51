"""In which order a run reads its pairs."""

import json
from pathlib import Path

import pytest
import torch

from sparsify_crosscoder import Run
from sparsify_crosscoder.commands import train
from sparsify_crosscoder.runs.options import parse_run_config
from sparsify_crosscoder.runs.pairs import load_training_data
from tests.support.command_line import RUN, command, save_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(autouse=True)
def inside(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def read(inputs, *options):
    """The seed of a run's order, and the pairs that it trains on and holds out."""
    config = parse_run_config(command(inputs, "--cache", "store", *options))
    data = load_training_data(config, torch.device("cpu"))
    assert data.held_out is not None
    trained, held_out = (
        torch.cat(next(stream.batches(0, 1, stream.num_pairs)), dim=1).float()
        for stream in (data.train, data.held_out)
    )
    return config.order_seed, trained, held_out


def test_the_order_follows_the_initial_seed_unless_one_is_given(inputs):
    seed, first, held_out = read(inputs, "--init_seeds", "0")
    another, second, same = read(inputs, "--init_seeds", "1")
    assert (seed, another) == (42, 43)
    assert not torch.equal(first, second) and torch.equal(held_out, same)
    assert torch.equal(first.unique(dim=0), second.unique(dim=0))
    seed, fixed, _ = read(inputs, "--init_seeds", "1", "--order_seed", "42")
    assert seed == 42 and torch.equal(fixed, first)
    assert read(inputs, "--init_seeds", "1", "2")[0] == 43


def test_a_run_of_an_earlier_version_keeps_the_order_that_it_had(inputs, capsys):
    argv = command(inputs, "--cache", "store", "--init_seeds", "1")
    train.main([*argv, "--order_seed", "42"])
    file = RUN / "config.json"
    options = json.loads(file.read_text(encoding="utf-8"))
    assert options.pop("order_seed") == 42
    file.write_text(json.dumps(options), encoding="utf-8")
    assert Run.open(RUN).config.order_seed == 42
    with pytest.raises(SystemExit):
        train.main([*argv, "--resume", "--order_seed", "43"])
    assert "order_seed: 42 before, 43 now" in capsys.readouterr().err
    train.main([*argv, "--resume"])
    assert json.loads(file.read_text(encoding="utf-8"))["order_seed"] == 42
