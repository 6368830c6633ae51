"""What carries a direction to the other model in an audit, and an audit in which nothing does."""

import json

import pyarrow.parquet as pq
import pytest

from delphi_adapters.audit.likeness import load_likeness
from delphi_adapters.commands.audit import main
from sparsify_crosscoder.interventions.stitching import Stitching
from tests.support.audit_results import STAGES, records

pytestmark = pytest.mark.xdist_group("audits")  # one worker makes what they share

OWN = (
    "--cache_ctx_len 32 --min_firings 20 --verify 2 --sample 2 --nulls 1 --strengths 0 2 "
    "--null_steps 0 --power_plants 0 --explain_limit 4"
)


@pytest.mark.slow
def test_a_fine_tune_and_its_base_need_no_text_to_be_stitched(twins, tmp_path, capsys):
    audit = tmp_path / "audit"
    argv = ["--run", str(twins), "--out", str(audit), *OWN.split()]
    main([*argv, "--dry_run"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("stitch "))
    assert "pairs" not in line
    main(argv)
    said = capsys.readouterr().out
    # The simplest methods and the stitching.
    assert said.count("share a basis (R2 of the identity 0.9") == 2
    stitching = Stitching.load(audit / "stitch" / "stitching")
    assert stitching.report["identity"] and 0.9 < stitching.report["r2"] < 1
    assert [one["name"].rpartition("/")[2] for one in stitching.sources] == ["base", "tuned"]
    measured = load_likeness(audit / "exclusivity")
    assert {one.kind for one in measured} == {"feature", "shared", "random"}
    # What one vector does to a model and to its fine-tune of all but equal weights is alike.
    assert min(one.likeness for one in measured) > 0.5
    done = records(audit)
    assert done["patch"]["result"]["texts"] == 12 and done["equivalence"]["result"]["latents"] == 6
    patched = json.loads((audit / "patch" / "patch.json").read_text(encoding="utf-8"))
    assert patched["near"] and {one["source"] for one in patched["models"]} == {0, 1}
    rows = pq.read_table(audit / "features.parquet").to_pylist()
    ablated = [row for row in rows if row["equivalence"] is not None]
    assert len(ablated) == 6 and {row["source"] for row in ablated} == {None}
    for row in ablated:
        gap = row["equivalence"] - row["equivalence_null"]
        assert row["equivalence_gap"] == pytest.approx(gap, abs=1e-6)
        assert -1 <= row["decoder_cosine"] <= 1
    report = (audit / "report.md").read_text(encoding="utf-8")
    assert "Do shared latents do the same in both models?" in report
    assert "the whole difference at this layer" in report
    assert f"the map is the identity, R2 {stitching.report['r2']:.2f}" in report
    assert "the identity, both ways" in report
    given = ["--run", str(twins), "--out", str(tmp_path / "other"), *OWN.split()]
    main([*given, "--stitching", str(audit / "stitch" / "stitching"), "--until", "exclusivity"])
    again = load_likeness(tmp_path / "other" / "exclusivity")
    assert [one.likeness for one in again] == pytest.approx([one.likeness for one in measured])


def test_without_text_to_fit_maps_to_an_audit_ends_in_a_report_that_says_so(run, tmp_path, capsys):
    audit = tmp_path / "audit"
    argv = ["--run", str(run), "--out", str(audit), *OWN.split()]
    main(argv)
    said = capsys.readouterr().out
    (line,) = (line for line in said.splitlines() if line.startswith("No maps between the models"))
    assert "--stitch_dataset" in line and "are needed" in line
    done = records(audit)
    assert list(done) == list(STAGES)
    assert all(record["finished"] for record in done.values())
    assert done["exclusivity"]["result"]["verified"] == 0
    report = (audit / "report.md").read_text(encoding="utf-8")
    assert "Nothing was steered and compared" in report
    main([*argv, "--json", str(tmp_path / "again.json")])
    assert "Nothing to do" in capsys.readouterr().out
    again = json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))
    assert "left_out" in again["stages"]["stitch"]


@pytest.mark.slow
def test_of_a_model_beside_itself_the_report_says_that_nothing_differs(twins, tmp_path, capsys):
    base, texts = str(twins.parent / "base"), str(twins.parent / "texts.txt")
    training = "--arch rdfc --hookpoints layers.1 layers.1 --num_latents 64 --k 4 --lr 1e-3 "
    training += "--pairs_per_step 128 --max_steps 20 --ctx_len 64 --log_to_wandb False --device cpu"
    out = ["--dataset", texts, "--out", str(tmp_path / "audit")]
    planting = ["--power_plants", "1", "--power_sizes", "1", "--power_shares", "0.02"]
    main([base, base, *out, *training.split(), *OWN.split(), *planting])
    said = capsys.readouterr().out.splitlines()
    nothing = said.index("No difference between the models reaches the strength of a finding.")
    assert said[nothing + 1].startswith("Of differences planted into this pair ")
    report = (tmp_path / "audit" / "report.md").read_text(encoding="utf-8")
    assert "| all kinds | 1 |" in report and "planted differences (" in report
    # No exclusive latent ever fires, so that there is none to look at.
    assert records(tmp_path / "audit")["explain"]["result"]["latents"] == []
    assert (tmp_path / "audit" / "report.html").exists()
