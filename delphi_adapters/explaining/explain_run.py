"""Latents of a run cached, described or judged, and summarised, in one folder.

```
FOLDER/
    latents/                        delphi's cache
    filter.json                     what the false-exclusive filter says, with its settings
    descriptions.json               without a judge
    answers/, explanations/, ...    with one: see autointerp
    features.parquet, summary.json
```
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sparsify_crosscoder.crosscoders import Crosscoder
from sparsify_crosscoder.evaluation.differences import crosscoder_differences
from sparsify_crosscoder.evaluation.false_exclusives import FilterConfig
from sparsify_crosscoder.evaluation.filter import FilterRecord, filter_crosscoder
from sparsify_crosscoder.files import atomic_write_json
from sparsify_crosscoder.hardware import pick_device
from sparsify_crosscoder.runs.models import check_model
from sparsify_crosscoder.runs.run import Run

from ..clients import ApiClient
from ..clients.costs import Costs, say_costs
from ..clients.judge import NO_JUDGE, JudgeConfig, fitting, make_client
from ..clients.judge_time import say_computed
from ..clients.ledger import Ledger
from ..clients.stopping import Stopped, run_asking
from ..delphi import compat  # noqa: F401
from ..delphi.crosscoder_cache import digest, run_cache
from .autointerp import RAW, Autointerp, JudgingConfig
from .choosing import OF_FILTER, chosen_latents
from .descriptions import FILE as DESCRIPTIONS
from .descriptions import Descriptions, describe_run, table_columns
from .summary import Summary, summarise

# isort: split
from delphi.clients import Client

SAMPLED = 24  # latents that an estimate looks at


@dataclass(frozen=True)
class ExplainConfig:
    """Which latents are looked at, on what text, and what a judge is shown of them."""

    latents: Sequence[str] = ("exclusive",)
    """Numbers, or "listed", "exclusive", "kept" or "all"; see `chosen_latents`."""

    source: int = 0
    """Whose tokens are shown."""

    ctx_len: int = 256
    """Tokens of a cached row."""

    windows: int | None = None
    """Windows of the text to cache, all if None."""

    judging: JudgingConfig = JudgingConfig()
    filter: FilterConfig | None = None
    """None leaves the filter's verdicts out."""

    weaker: bool = True
    """Whether explanations are tested on weaker passages too, which they were not written from."""

    def __post_init__(self):
        asked = next((one for one in OF_FILTER if list(self.latents) == [one]), None)
        if self.filter is None and asked is not None:
            raise ValueError(f"--latents {asked} asks the filter: leave out --no_filter.")


@dataclass(frozen=True)
class Pending:
    """What is left to ask, where only the costs were asked for."""

    latents: int
    estimate: Costs
    stopped: None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"pending": self.latents, "estimate": self.estimate.to_dict(), "stopped": None}


@dataclass(frozen=True)
class ExplainedRun:
    """What was found of a run's latents."""

    run: Path
    judge: str
    summary: Summary
    estimate: Costs | None = None
    """What asking was expected to take; None without a judge."""

    ledger: Ledger | None = None
    """None if the judge costs nothing."""

    stopped: str | None = None
    """Why the judge was stopped, if it was."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without what is not there."""
        found = {"run": str(self.run), "judge": self.judge, **self.summary.to_dict()}
        if self.estimate is not None:
            found["estimate"] = self.estimate.to_dict()
        found["stopped"] = self.stopped
        if self.ledger is not None:
            found["ledger"] = self.ledger.summary()
        return found


def explain_run(
    run: Run,
    judge: JudgeConfig,
    config: ExplainConfig,
    folder: Path,
    *,
    seed: int | None = None,
    dry_run: bool = False,
) -> ExplainedRun | Pending:
    """Describe latents of a run by words and tokens, or have a judge explain, flag and score them.

    Prints what it will take, and a summary. What is in the folder already is not computed and not
    asked again; `dry_run` asks nothing. `seed` chooses one of several crosscoders; `judge.device`
    is where everything runs. Raises ValueError, before anything is asked, for options that do not
    fit the run, the judge or the folder, and where the run's models, texts or store have changed.
    """
    crosscoder = run.crosscoder(seed, pick_device(judge.device))

    @cache
    def filtered() -> FilterRecord | None:
        return _filtered(run, crosscoder, config, folder)

    def said() -> FilterRecord:
        found = filtered()
        assert found is not None
        return found

    latents = chosen_latents(config.latents, crosscoder, said)
    judge.check()
    name, client = str(judge.judge), None
    if name != NO_JUDGE:
        client = make_client(judge, folder, dry_run=dry_run)
    cached = run_cache(
        run, crosscoder, folder / RAW, config.source, ctx_len=config.ctx_len, windows=config.windows
    )
    cached.complete()
    autointerp = Autointerp(cached, folder, config.judging, run=run.path, judge=name)
    number = (
        f"{len(latents):,} latents, {int(cached.statistics.dead[latents].sum()):,} of them dead"
    )
    estimate, stopped = None, None
    if not autointerp.judged:
        print(f"{number}; no judge to ask")
        if dry_run:
            return Pending(0, Costs(0))
        described = _described(run, autointerp, crosscoder, latents)
    else:
        pending = autointerp.pending(latents, config.weaker)
        print(f"{number}; {len(pending):,} to ask {name} about")
        estimate = _estimate(autointerp, client, pending, judge, config.weaker)
        if dry_run:
            return Pending(len(pending), estimate)
        assert client is not None
        filtered()  # before anything is paid
        try:
            most = judge.max_concurrent or fitting(client)
            run_asking(_ask(autointerp, client, latents, most, config.weaker), client)
        except Stopped as reason:
            stopped = str(reason)
        # What was described before, if it was.
        described = Descriptions.load(folder) if (folder / DESCRIPTIONS).exists() else None
    columns = table_columns(described)
    summary = summarise(autointerp, crosscoder, latents, filtered(), columns)
    ledger = client.ledger if isinstance(client, ApiClient) else None
    found = ExplainedRun(run.path, name, summary, estimate, ledger, stopped)
    atomic_write_json(folder / "summary.json", found.to_dict())
    return found


def _described(
    run: Run, autointerp: Autointerp, crosscoder: Crosscoder, latents: Sequence[int]
) -> Descriptions:
    dead = autointerp.cache.statistics.dead
    alive = [latent for latent in latents if not dead[latent]]
    for end in run.ends:
        check_model(end.model, end.revision, end.checkpoint)
    found = describe_run(run, autointerp.cache, crosscoder, alive)
    found.save(autointerp.folder)
    return found


def _estimate(
    autointerp: Autointerp,
    client: Client | None,
    pending: Sequence[int],
    judge: JudgeConfig,
    weaker: bool,
) -> Costs:
    sample = pending[:: max(len(pending) // SAMPLED, 1)][:SAMPLED]
    prompts, scale = autointerp.prompts(sample, weaker), len(pending) / max(len(sample), 1)
    estimate = say_costs(client, prompts, scale, f"{len(pending):,} latents")
    if client is None and prompts:
        say_computed(str(judge.judge), pick_device(judge.device), prompts, scale)
    return estimate


async def _ask(
    autointerp: Autointerp, client: Client, latents: Sequence[int], at_once: int, weaker: bool
) -> None:
    await autointerp.run(client, latents, at_once, weaker)
    await autointerp.sort(client, latents, at_once)


def _filtered(
    run: Run, crosscoder: Crosscoder, config: ExplainConfig, folder: Path
) -> FilterRecord | None:
    """What the false-exclusive filter says, kept in the folder for the next start.

    With the list of differences where latents of that are asked for.
    """
    if config.filter is None:
        return None
    settings = {"weights": digest(crosscoder), "filter": asdict(config.filter)}
    listed = list(config.latents) == ["listed"]
    path = folder / "filter.json"
    if path.exists():
        kept = FilterRecord.read(path, "Delete it, and the latents are filtered again.")
        if kept.found.get("settings") == settings and ("rows" in kept.found or not listed):
            return kept
    if listed:
        found = crosscoder_differences(run, crosscoder, config.filter).to_dict()
    else:
        pairs = run.pairs(crosscoder.device)
        found = filter_crosscoder(crosscoder, pairs, config.filter).to_dict()
    atomic_write_json(path, {"settings": settings, **found})
    return FilterRecord.of(found)
