"""Differences that an audit plants into its pair, to say which it would have found."""

import json
import shutil
from pathlib import Path

import pytest

from delphi_adapters.commands.audit import main
from sparsify_crosscoder.__main__ import main as plant
from tests.support.audit_results import records

pytestmark = pytest.mark.xdist_group("audits")  # one worker makes what they share

LARGE = "--power_sizes 1 --power_shares 0.02 --filter_pairs 6000"
TRAINING = "--arch rdfc --hookpoints layers.1 layers.1 --num_latents 64 --k 4 --max_steps 30"
OWN = f"--cache_ctx_len 32 --null_steps 0 --until power {LARGE}"


@pytest.fixture(scope="module")
def planted(twins, tmp_path_factory) -> tuple[Path, list[str]]:
    """The folder of an audit whose last stage has planted, and its options."""
    audit = tmp_path_factory.mktemp("power") / "audit"
    argv = ["--run", str(twins), "--out", str(audit), *OWN.split()]
    main(argv)
    return audit, argv


def rounds(folder: Path) -> list[dict]:
    lines = (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    return [{**json.loads(line), "seconds": 0} for line in lines]


def test_plants_of_all_kinds_share_one_training_and_a_killed_stage_goes_on(
    planted, tmp_path, capsys
):
    audit, argv = planted
    record = records(audit)["power"]
    assert record["finished"] and not record["result"]["kept"]
    recall, (nothing, found) = record["result"]["recall"], rounds(audit / "power")
    assert recall["of"] == len(found["plants"]) >= 2 and not nothing["planted"]
    assert recall["found"] == sum(one["finding"] for one in found["plants"])
    assert {one["source"] for one in found["plants"]} == {0, 1}
    assert not (audit / "power" / "training").exists()

    # As a kill leaves it: the stage begun, one list done, the next one's line cut off.
    again = tmp_path / "audit"
    shutil.copytree(audit, again)
    file = again / "power" / "rounds.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    before = file.read_bytes().splitlines(keepends=True)[0]
    main([*argv, "--out", str(again)])
    assert rounds(again / "power") == rounds(audit / "power")
    assert file.read_bytes().startswith(before)

    capsys.readouterr()
    main([*argv, "--out", str(again), "--power_plants", "0"])
    assert records(again)["power"]["result"] == {"left_out": "--power_plants 0"}


def test_a_dry_run_has_its_price_in_a_line_of_its_own(planted, twins, tmp_path, capsys):
    _, argv = planted
    texts = ["--dataset", str(twins.parent / "texts.txt"), *OWN.split()]
    models = [str(twins.parent / name) for name in ("base", "tuned")]
    prices = {}
    for name, first in (("run", argv), ("models", [*models, *texts, *TRAINING.split()])):
        out = ["--out", str(tmp_path / "planned"), "--json", str(tmp_path / "left.json")]
        main([*first, *out, "--dry_run"])
        (line,) = (one for one in capsys.readouterr().out.splitlines() if one.startswith("power "))
        assert "plants" in line and "1 trainings" in line
        left = json.loads((tmp_path / "left.json").read_text(encoding="utf-8"))
        prices[name] = left["stages"]["power"]["seconds"]
    assert all(price > 0 for price in prices.values())


def test_what_was_planted_into_the_run_before_is_taken(twins, planted, tmp_path, capsys):
    audit, argv = tmp_path / "audit", planted[1]
    run = tmp_path / "run"
    shutil.copytree(twins, run)
    shutil.copytree(planted[0], audit)
    argv = [*argv, "--run", str(run), "--out", str(audit)]
    own = "--kinds random --sizes 1 --frequencies 0.02 --replicates 1 --pairs 6000 --device cpu"
    plant(["plant", str(run), *own.split()])
    main(argv)
    result = records(audit)["power"]["result"]
    assert result["kept"] and result["recall"]["of"] == 1
    assert rounds(audit / "power") == rounds(run / "plants")
    capsys.readouterr()
    main(argv)
    assert "Nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, complaint",
    [
        (["--power_plants", "-1"], "must not be negative"),
        (["--power_sizes", "0"], "above 0"),
        (["--power_shares", "0.9"], "up to 0.5"),
    ],
)
def test_what_cannot_be_planted_is_said_before_anything_is_done(
    options, complaint, twins, tmp_path, capsys
):
    with pytest.raises(SystemExit) as stopped:
        main(["--run", str(twins), "--out", str(tmp_path / "audit"), *options])
    assert stopped.value.code == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "audit").exists()
