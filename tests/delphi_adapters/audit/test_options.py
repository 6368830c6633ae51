"""Options of an audit, those of training among them, and files of both."""

from pathlib import Path

import pytest

from delphi_adapters.audit.stages.exclusivity import Listed, Verified
from delphi_adapters.audit.verification import ChosenCounts
from delphi_adapters.commands.audit import read_options

JUDGE = ["--judge", "claude-test"]


def test_options_of_training_are_passed_on():
    argv = "a b --hookpoints layers.1 h.2 --verify 3 --k=4 --lr 1e-3 --strengths -4 0 4"
    config = read_options([*argv.split(), *JUDGE]).config
    assert config.models == ["a", "b"]
    assert config.train == ["--hookpoints", "layers.1", "h.2", "--k=4", "--lr", "1e-3"]
    assert config.stages["exclusivity"].verify == 3
    assert config.stages["exclusivity"].strengths == [-4, 0, 4]


def test_a_file_gives_options_and_the_command_line_comes_first(tmp_path):
    (tmp_path / "pair.yaml").write_text(
        "model_a: a\nmodel_b: b\nk: 4\nhookpoints: [layers.1, h.2]\nverify: 7\nsample: 2\n"
        "judge: claude-test\nno_blinded: true\nbatch: false\nmax_steps: null\n",
        encoding="utf-8",
    )
    argv = ["--config", str(tmp_path / "pair.yaml"), "--k", "8", "--sample", "5"]
    config = read_options(argv).config
    assert config.models == ["a", "b"]
    assert config.train == ["--hookpoints", "layers.1", "h.2", "--k", "8"]
    verification = config.stages["exclusivity"]
    assert (verification.verify, verification.sample) == (7, 5)
    assert verification.no_blinded
    assert config.judge.judge == "claude-test"
    assert not config.judge.batch


def test_the_unpushed_model_is_always_among_the_strengths():
    config = read_options(["a", "b", *JUDGE, "--strengths", "2", "4"]).config
    assert config.stages["exclusivity"].strengths == [0, 2, 4]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([*JUDGE], "name the two models"),
        (["a", *JUDGE], "name the two models"),
        (["a", "b", "--max_cost", "3"], "--max_cost goes with a judge"),
        (["a", "b", "--max_cost", "0"], "--max_cost goes with a judge"),
        (["a", "b", "--judge", "none", "--batch"], "--batch goes with a judge"),
        (["a", "b", "--provider", "transformers"], "--provider goes with a judge"),
        (["a", "b", "--rubrics", "ccp_alignment"], "--rubrics are rated by a judge"),
        (["a", "b", *JUDGE, "--cache", "c"], "--cache is set by the audit"),
        (["a", "b", *JUDGE, "--resume"], "--resume is set by the audit"),
        (["a", "b", *JUDGE, "--run", "r"], "--run is trained already"),
        (["--run", "r", *JUDGE, "--k", "4"], "--run is trained already"),
        (["a", "b", *JUDGE, "--sample", "-1"], "must not be negative"),
        (["a", "b", *JUDGE, "--strengths", "0"], "besides 0"),
        (["a", "b", *JUDGE, "--until", "lunch"], "invalid choice"),
        (["a", "b", *JUDGE, "--config", "none.yaml"], "no file"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_done(argv, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        read_options(argv)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b\n", "has to name options"),
        ("model_a: a\n", "names one model"),
        ("config: other.yaml\n", "another --config"),
        ("a: [", "is no YAML"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path, text, said, capsys):
    path = Path(tmp_path / "bad.yaml")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit):
        read_options(["--config", str(path), *JUDGE])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("until", ["null", "exclusivity", "report"])
def test_nobody_is_asked_unless_a_judge_is_named(until):
    assert not read_options(["a", "b", "--until", until]).config.judged
    assert not read_options(["a", "b", "--judge", "none"]).config.judged


@pytest.mark.parametrize("latents", [[0], [0, 5], [5, 63]])
def test_what_was_verified_of_every_latent_is_shown_of_latent_0_too(latents):
    listed = [Listed(f"latent {latent}", "kept", 0, latent) for latent in latents]
    scored = [(one, f"of {one.name}") for one in [*listed, Listed("random", "random", 0, None)]]
    chosen = ChosenCounts(0, 0, 0, 0, "explained", 0)
    verified = Verified(chosen, scored, [], None, Path())
    assert verified.of_latents() == {latent: f"of latent {latent}" for latent in latents}
