"""`kill -9` at random moments of an audit, until it is done: the same results."""

import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest

from tests.support.audit_results import STAGES, differences, records, results

KILLS = 6
INSIDE = {"cache", "explain", "score", "exclusivity", "train", "null", "stitch"}


def run_audit(options: list[str], output: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)  # a server of forks has that of whoever asked it first
    with open(output, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from delphi_adapters.commands.audit import main

    main(options)


@pytest.mark.slow
def test_an_audit_killed_at_random_moments_comes_to_the_same(options, tmp_path, server):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "delphi_adapters.audit.pipeline",
            "delphi_adapters.explaining.autointerp",
            "transformers.models.auto",
            "anthropic",
        ]
    )
    server.hold = lambda: time.sleep(0.02)  # so that there is something to kill it in

    def run(folder: Path, seconds: float | None) -> bool:
        """Whether the audit was killed before its end."""
        argv = ([*options, "--out", str(folder)], str(tmp_path / "output.txt"), {**os.environ})
        process = context.Process(target=run_audit, args=argv)
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
            return True
        assert process.exitcode == 0, (tmp_path / "output.txt").read_text(encoding="utf-8")
        return False

    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    assert not run(whole, None)
    begun = time.monotonic()
    assert not run(tmp_path / "again", None)
    seconds = time.monotonic() - begun
    moments = random.Random("audit")
    kills, where = 0, set()
    while run(pieces, moments.uniform(0.05, 0.2) * seconds):
        kills += 1
        where |= {stage for stage, one in records(pieces).items() if not one["finished"]}
        assert kills < 20 * KILLS, "it does not get on"
    assert kills >= KILLS
    assert len(where & INSIDE) >= 3
    assert differences(results(pieces), results(whole)) == []
    assert list(records(pieces)) == list(STAGES)
