"""A stage of another package: one file and one entry point."""

import json
import re

import pytest

from delphi_adapters.audit.stage_list import StageError, in_order, stage_kinds
from delphi_adapters.commands.audit import main
from tests.support.audit_results import STAGES, records

FREQUENT = '''
"""How many latents fire often."""

from dataclasses import asdict, dataclass

from delphi_adapters.audit.outcome import Cost, Outcome
from delphi_adapters.audit.stage import Stage
from delphi_adapters.audit.stages.cache import Cache


@dataclass
class FrequentOptions:
    """What is often."""

    least_firings: int = 1_000
    """pairs on which a frequent latent fires ({default:,})"""

    def __post_init__(self):
        if self.least_firings < 1:
            raise ValueError("--least_firings must be at least 1.")


class Frequent(Stage[FrequentOptions, int]):
    """Counts the latents that fire often."""

    name = "frequent"
    what = "how many latents fire often"
    needs = ("cache",)
    Options = FrequentOptions

    def inputs(self, ctx):
        return asdict(self.options)

    def estimate(self, ctx):
        return Cost(1.0, {"latents": ctx.crosscoder.num_latents})

    def run(self, ctx, folder):
        firings = ctx.output(Cache).statistics.firings
        found = int((firings >= self.options.least_firings).sum())
        (folder / "count.txt").write_text(str(found), encoding="utf-8")
        return Outcome({"frequent": found}, [folder / "count.txt"])

    def output(self, ctx, folder, record):
        return record.result["frequent"]
'''


@pytest.fixture
def frequent(plugin):
    """A package with the stage is installed."""
    offer = {"delphi_adapters.stages": {"frequent": "frequent_stage:Frequent"}}
    plugin("frequent-stage", {"frequent_stage.py": FREQUENT}, offer)


@pytest.mark.xdist_group("audits")  # whose finished one it goes on with
def test_a_stage_of_another_package_is_done_once(frequent, options, audit, server, capsys):
    main([*options, "--dry_run"])
    said = capsys.readouterr().out
    assert re.search(r"^report +done", said, re.M)
    assert re.search(r"^frequent +to do, about 1 s.*: 64 latents$", said, re.M)
    asked = len(server.bodies)

    main(options)
    said = capsys.readouterr().out
    assert "[18/18] frequent: how many latents fire often (to do)" in said
    assert "[17/18] report: one page, and tables (done)" in said
    first = json.loads((audit / "frequent" / "stage.json").read_text(encoding="utf-8"))
    assert first["finished"]
    assert 0 < first["result"]["frequent"] < 64
    main(options)
    assert "Nothing to do: every stage up to frequent" in capsys.readouterr().out

    (audit / "frequent" / "count.txt").unlink()
    main(options)
    assert "frequent: how many latents fire often (begun)" in capsys.readouterr().out
    before = records(audit)
    main([*options, "--least_firings", "1"])
    assert "frequent: how many latents fire often (changed)" in capsys.readouterr().out
    again = json.loads((audit / "frequent" / "stage.json").read_text(encoding="utf-8"))
    assert again["result"]["frequent"] > first["result"]["frequent"]
    assert records(audit) == before
    assert len(server.bodies) == asked


def test_its_options_are_the_commands(frequent, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "report,frequent}" in said
    listed = "frequent: --least_firings LEAST_FIRINGS pairs on which a frequent latent fires"
    assert f"{listed} (1,000)" in said
    with pytest.raises(SystemExit) as stopped:
        main(["a", "b", "--least_firings", "0"])
    assert stopped.value.code == 2
    assert "--least_firings must be at least 1" in capsys.readouterr().err


def test_stages_come_after_what_they_need():
    kinds = stage_kinds()
    assert in_order(kinds[::-1]) != kinds[::-1]
    for order in (kinds, in_order(kinds[::-1])):
        names = [kind.name for kind in order]
        assert set(names) == set(STAGES)
        for kind in order:
            assert all(names.index(need) < names.index(kind.name) for need in kind.needs)


def test_stages_that_do_not_go_together_are_refused():
    kinds = stage_kinds()
    with pytest.raises(StageError, match="'train' is there more than once"):
        in_order([*kinds, kinds[1]])
    with pytest.raises(StageError, match="'train' needs what is not there: harvest"):
        in_order(kinds[1:])


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("Frequent = None", "is no subclass"),
        ("raise OSError('no')", "cannot be imported: OSError: no"),
        (FREQUENT.replace('name = "frequent"', 'name = "other"'), "calls itself 'other'"),
    ],
)
def test_what_is_no_stage_is_refused(source, said, plugin):
    offer = {"delphi_adapters.stages": {"frequent": "frequent_stage:Frequent"}}
    plugin("frequent-stage", {"frequent_stage.py": source}, offer)
    with pytest.raises(StageError, match=said):
        stage_kinds()


def test_metadata_of_an_older_install_is_said_to_be_old(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("delphi_adapters.audit.stage_list.offered", lambda group: ())
    with pytest.raises(SystemExit) as stopped:
        main(["a", "b", "--out", str(tmp_path / "audit")])
    assert stopped.value.code == 1
    assert "install sparsify-crosscoder again" in capsys.readouterr().err
    assert not (tmp_path / "audit").exists()
