"""An audit without a judge: described, compared and reported, with nothing made up."""

import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from delphi_adapters.audit.likeness import load_likeness
from delphi_adapters.audit.pipeline import run_audit
from delphi_adapters.commands.audit import main, read_options
from delphi_adapters.commands.explain import main as explain
from delphi_adapters.explaining.descriptions import Descriptions, describe, sources_written_to
from delphi_adapters.explaining.features import COLUMNS
from sparsify_crosscoder import Crosscoder, LatentCard, Run, latent_card
from sparsify_crosscoder.evaluation.filter import FilterRecord
from sparsify_crosscoder.evaluation.latent_card import UNKNOWN
from tests.support.audit_judge import AuditJudge
from tests.support.audit_results import STAGES, records
from tests.support.audit_texts import write_other_texts

pytestmark = pytest.mark.xdist_group("audits")  # one worker makes what they share

OWN = (
    "--cache_ctx_len 32 --min_firings 20 --verify 4 --sample 6 --nulls 2 --strengths 0 2 4 "
    "--null_steps 0 --power_plants 0 --stitch_pairs 2000 --stitch_held_out_pairs 200 "
    "--explain_limit 5"
)
OF_A_JUDGE = ("explanation", "flag_status", "harmful", "reason", "category", "detection_score")
OF_A_JUDGE += ("interpretable", "exclusivity", "exclusivity_status", "steering_interpretability")
DESCRIBING = ("fires_on", "characteristic_words", "promoted_0", "promoted_1", "likeness", "effect")


@pytest.fixture(scope="module")
def unjudged(run, tmp_path_factory):
    """The folder of a finished audit of the tiny run, and its options."""
    folder = tmp_path_factory.mktemp("unjudged")
    write_other_texts(folder / "others.jsonl")
    argv = ["--run", str(run), "--out", str(folder / "audit"), *OWN.split()]
    argv += ["--stitch_dataset", str(folder / "others.jsonl")]
    main(argv)
    return folder / "audit", argv


def rows_of(folder: Path) -> list[dict]:
    return pq.read_table(folder / "features.parquet").to_pylist()


def test_what_a_judge_would_say_is_empty_and_the_report_says_so(unjudged):
    audit, _ = unjudged
    done = records(audit)
    assert list(done) == list(STAGES)
    assert all(record["finished"] for record in done.values())
    for stage in ("explain", "score"):
        assert done[stage]["result"]["left_out"] == "no judge: no explanation was written"
    rows = rows_of(audit)
    assert {row[name] for row in rows for name in OF_A_JUDGE} == {None}
    text = (audit / "report.md").read_text(encoding="utf-8")
    assert "There was no judge: no explanation was written" in text
    assert "Explanation." not in text
    schema = pq.read_schema(audit / "features.parquet")
    assert schema.names == list(COLUMNS)
    assert all(schema.field(name).metadata[b"meaning"] for name in DESCRIBING)


def test_latents_are_described_and_shared_ones_in_both_models(unjudged, run):
    audit, _ = unjudged
    found, rows = Descriptions.load(audit / "describe"), rows_of(audit)
    chosen = records(audit)["explain"]["result"]["latents"]
    assert len(chosen) == 5
    assert set(chosen) <= set(found.latents)
    assert len(found.latents) > len(chosen)  # shared ones to compare with
    assert found.left_out == {}
    written_to = sources_written_to(Crosscoder.load_one(run))
    for latent, one in found.latents.items():
        assert sorted(one.promoted) == sorted(one.suppressed) == written_to(latent)
        assert sum(count for _, count in one.fires_on) <= one.passages <= 10
        for source in (0, 1):
            assert bool(rows[latent][f"promoted_{source}"]) == (source in written_to(latent))
    assert {len(written_to(latent)) for latent in found.latents} == {1, 2}
    assert all(rows[latent]["fires_on"] for latent in chosen)
    assert sum(bool(rows[latent]["characteristic_words"]) for latent in chosen) > 3


def test_likeness_is_beside_that_of_shared_latents_and_random_directions(unjudged):
    audit, _ = unjudged
    found, rows = load_likeness(audit / "exclusivity"), rows_of(audit)
    assert {one.kind for one in found} == {"feature", "shared", "random"}
    for one in found:
        assert one.strengths == [2, 4]
        assert -1 <= one.likeness <= 1
        assert one.effect > 0
        if one.kind == "feature":
            assert rows[one.latent]["likeness"] == pytest.approx(one.likeness)
            assert rows[one.latent]["sampled"] == one.why
    compared = {row["latent"] for row in rows if row["likeness"] is not None}
    assert compared == {one.latent for one in found if one.kind == "feature"}
    assert "Likeness of effects, beside what is not exclusive" in (audit / "report.md").read_text(
        encoding="utf-8"
    )


def test_descriptions_depend_on_neither_order_nor_threads(unjudged, run, tmp_path):
    from delphi_adapters.delphi.crosscoder_cache import CacheOptions, CrosscoderLatentCache
    from delphi_adapters.delphi.run_text import RunText
    from sparsify_crosscoder.harvest.sources import load_language_model

    audit, _ = unjudged
    crosscoder = Crosscoder.load_one(run)
    text = RunText.of_run(run, torch.device("cpu"))
    folder = audit / "cache" / "latents"
    cache = CrosscoderLatentCache(crosscoder, text, folder, options=CacheOptions(ctx_len=32))
    latents = list(Descriptions.load(audit / "describe").latents)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found = describe(
            cache,
            crosscoder,
            latents[::-1],
            lambda source: load_language_model(text.models[source], device="cpu"),
        )
    finally:
        torch.set_num_threads(threads)
    found.save(tmp_path)
    written = (audit / "describe" / "descriptions.json").read_bytes()
    assert (tmp_path / "descriptions.json").read_bytes() == written


def test_a_second_audit_has_nothing_to_do(unjudged, capsys):
    audit, argv = unjudged
    main([*argv, "--judge", "none"])
    said = capsys.readouterr().out
    assert "Nothing to do" in said
    assert (audit / "report" / "first.txt").read_text(encoding="utf-8") in said


def test_a_judge_that_is_named_later_redoes_only_what_it_changes(
    unjudged, server, tmp_path, monkeypatch
):
    audit, argv = unjudged
    shutil.copytree(audit, tmp_path / "audit")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    server.answer = AuditJudge()
    prices = {"claude-test": {"input": 1.0, "output": 10.0}}
    (tmp_path / "prices.json").write_text(json.dumps(prices), encoding="utf-8")
    judge = ["--judge", "claude-test", "--prices", str(tmp_path / "prices.json")]
    own = [*argv, "--out", str(tmp_path / "audit"), "--max_new_tokens", "6", "--verify", "1"]
    main([*own, "--sample", "1", "--nulls", "2", *judge, "--max_cost", "100"])
    before, after = records(audit), records(tmp_path / "audit")
    again = {stage for stage in STAGES if after[stage] != before[stage]}
    assert again == {"explain", "score", "exclusivity", "rubrics", "report"}
    rows = rows_of(tmp_path / "audit")
    chosen = after["explain"]["result"]["latents"]
    assert all(rows[latent]["explanation"] for latent in chosen)
    assert any(rows[latent]["promoted_0"] for latent in chosen)
    assert {row["likeness"] for row in rows} == {None}
    text = (tmp_path / "audit" / "report.md").read_text(encoding="utf-8")
    assert "There was no judge" not in text
    assert "**Promotes in llama.**" in text


def test_a_dry_run_says_what_is_left_out(unjudged, tmp_path, capsys):
    _, argv = unjudged
    main([*argv, "--out", str(tmp_path / "new"), "--dry_run"])
    said = capsys.readouterr().out
    assert re.search(r"explain +left out, no judge", said)
    assert re.search(r"exclusivity +to do, about .*directions", said)
    assert not (tmp_path / "new").exists()


def test_explain_without_a_judge_asks_nobody(run, tmp_path, capsys):
    options = [str(run), "--out", str(tmp_path), "--ctx_len", "32", "--latents", "3", "40"]
    explain([*options, "--dry_run"])
    assert "no judge to ask" in capsys.readouterr().out
    assert not (tmp_path / "features.parquet").exists()
    explain([*options, "--no_filter"])
    assert "no judge: no explanation was written" in capsys.readouterr().out
    rows = rows_of(tmp_path)
    assert {row["explanation"] for row in rows} == {None}
    assert [row["latent"] for row in rows if row["fires_on"]] == [3, 40]
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))["judge"] == "none"
    assert not (tmp_path / "run_config.json").exists()  # a judge can still be asked here


def test_a_latents_card_says_the_same_in_the_table_the_report_and_python(unjudged, run):
    audit_folder, argv = unjudged
    read = FilterRecord.read(audit_folder / "filter" / "filter.json", "")
    again = run_audit(read_options(argv).config)
    random = {
        source: [
            one.effect
            for one in load_likeness(audit_folder / "exclusivity")
            if one.kind == "random" and one.source == source
        ]
        for source in (0, 1)
    }
    steered = [row for row in rows_of(audit_folder) if row["effect"] is not None]
    assert steered
    for row in steered:
        card = again.card(row["latent"])
        assert card == LatentCard.of(row)
        beyond = sum(effect >= card.effect for effect in random[card.source])
        assert card.effect_p == (1 + beyond) / 3  # of two random directions
        own = latent_card(Run.open(run), card.latent, read, device="cpu")
        assert (own.filter_score_low, own.pairs_present) == (
            card.filter_score_low,
            card.pairs_present,
        )
    said = f"| q | {UNKNOWN} |"
    assert said in (audit_folder / "report.md").read_text(encoding="utf-8")


def test_the_card_of_a_run_alone_lists_its_differences_itself(run):
    card = latent_card(Run.open(run), 3, device="cpu")
    assert card.listed is not None and card.pairs_read > 0
    assert card.q_value is None and card.effect is None
    with pytest.raises(ValueError, match=r"no latent 64: .* has 64, from 0 on"):
        latent_card(Run.open(run), 64)
