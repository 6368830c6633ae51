"""What the explorer says of a finished audit's latents."""

import pyarrow.parquet as pq
import pytest

from delphi_adapters.explorer.audited import open_run
from delphi_adapters.explorer.explorer import Explorer

pytestmark = pytest.mark.xdist_group("audits")  # one worker makes what they share


def test_an_audits_latents_have_its_facts_and_its_maps(finished):
    run, audited = open_run(finished)
    assert run.path == finished / "train" / "run"
    rows = pq.read_table(finished / "features.parquet").to_pylist()
    explained = next(row for row in rows if row["explanation"])
    facts = dict(audited.facts(explained["latent"]))
    assert facts["explanation"] == explained["explanation"]
    verdict = explained["filter_verdict"]
    assert verdict is None or facts["filter"].startswith(verdict.replace("_", " "))
    assert audited.facts(10_000) == []
    steered = [r for r in rows if r["exclusivity_status"] and r["source"] is not None]
    strengths = [audited.coherent(row["latent"]) for row in steered]
    assert strengths and set(strengths) <= {0.0, 4.0}  # this audit steered at 0 and 4
    assert audited.coherent(10_000) is None

    explorer = Explorer(run, audited, pairs=2000, device="cpu")
    latent = max(
        explorer.crosscoder.partition.exclusive(0), key=lambda one: float(explorer.largest[one])
    )
    both = explorer.steer(latent, 4.0, "The sea", tokens=3)
    assert [one.refused for one in both] == [None, None]  # the other model by the stitching


def test_an_audit_that_is_not_finished_says_so(finished, tmp_path):
    (tmp_path / "audit.json").write_bytes((finished / "audit.json").read_bytes())
    with pytest.raises(ValueError, match="has no table of latents yet"):
        open_run(tmp_path)
