"""What every command says of itself."""

import sys

import pytest

import delphi_adapters.__main__
import sparsify_crosscoder.__main__

ARCHITECTURES = ("crosscoder", "dfc", "dsf", "rdfc")
OURS = ("store", "top", "filter", "null", "stability", "plant", "stitch", "steer", "persona")
OURS += ("graft", "patch", "equivalence", "transfer", "toy", "baselines", "export", "import")
OURS += ("push",)
ADAPTERS = ("audit", "explain", "rubric", "reliability", "serve")
OVERVIEW = "crosscoders over several models"


@pytest.fixture
def said(capsys, monkeypatch):
    """What `PACKAGE ARGUMENTS` prints before it ends with 0."""
    monkeypatch.setenv("COLUMNS", "100")

    def said(package, *argv: str) -> str:
        monkeypatch.setattr(sys, "argv", [package.__name__, *argv])
        with pytest.raises(SystemExit) as stopped:
            package.__main__.main()
        out, err = capsys.readouterr()
        assert stopped.value.code == 0, err
        return out

    return said


@pytest.mark.parametrize("package", [sparsify_crosscoder, delphi_adapters])
def test_of_all_commands(package, said, golden):
    golden.words(f"help/{package.__name__}", said(package, "--help"))


@pytest.mark.parametrize("name", OURS)
def test_of_a_command(name, said, golden):
    golden.words(f"help/{name}", said(sparsify_crosscoder, name, "--help"))


@pytest.mark.parametrize("name", ADAPTERS)
def test_of_a_command_with_a_judge(name, said, golden):
    golden.words(f"help/{name}", said(delphi_adapters, name, "--help"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_of_training(name, said, golden):
    golden.words(f"help/train_{name}", said(sparsify_crosscoder, "train", "--arch", name, "--help"))


def test_of_training_without_an_architecture(said, golden):
    # Before it is what sparsify says of its own options.
    _, found, ours = said(sparsify_crosscoder, "train", "--help").partition(OVERVIEW)
    golden.words("help/train", found + ours)


def test_of_harvesting(said, golden):
    golden.words("help/train_rdfc", said(sparsify_crosscoder, "harvest", "--help"))
