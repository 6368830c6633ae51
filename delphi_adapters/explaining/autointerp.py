"""Explanations, flags and detection scores of a cache's latents, by delphi's pipeline (B.4.1).

```
results_dir/
    latents/                delphi's raw directory
    explanations/ flags/ scores/detection/ interpretability/ held_out/
    log/ run_config.json    what delphi's log_results reads besides
```
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import torch

from sparsify_crosscoder.files import atomic_path, atomic_write_json, remove_leftovers
from sparsify_crosscoder.records import read_json

from ..delphi import compat

# isort: split
from delphi.clients import Client
from delphi.clients.client import Response
from delphi.config import CacheConfig, ConstructorConfig, RunConfig, SamplerConfig
from delphi.latents import LatentDataset, LatentRecord
from delphi.latents.latents import Latent

from ..clients.judge import NO_JUDGE
from ..delphi.crosscoder_cache import CrosscoderLatentCache
from ..judging.ask import Todo, ask_all, settled
from ..progress import each, progress
from . import categories, flagging, held_out, interpretability
from .categories import Categorized, CategoryJudge
from .flagging import FlaggedResult, FlaggingExplainer
from .held_out import HeldOut, held_out_detection, kept_passages
from .interpretability import Interpretability, InterpretabilityFilter, InterpretabilityResult

RAW = "latents"
_BEHIND_THE_LAST_ROW = (
    "It fires only behind the last whole row of the cache, which delphi leaves out."
)
_FOLDERS = ("explanations", "flags", "scores/detection", "interpretability", "held_out")


@dataclass(frozen=True)
class JudgingConfig:
    """What the judge is shown of a latent; the defaults are the paper's (B.4.1, B.4.4)."""

    num_examples: int = 10
    """Examples with the greatest activation that the explanation is made from."""

    example_ctx_len: int = 32
    """Tokens of an example; divides the cache's ctx_len."""

    n_examples_shown: int = InterpretabilityFilter.n_examples_shown
    """Examples in one request of the detection test."""

    n_top: int = InterpretabilityFilter.n_top
    """Examples of the detection test with the greatest activation."""

    n_random: int = InterpretabilityFilter.n_random
    """Examples of the detection test where the latent is silent."""

    threshold: float = InterpretabilityFilter.threshold
    """Least detection score of an interpretable latent."""

    def __post_init__(self):
        for name in ("num_examples", "example_ctx_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")


class Autointerp:
    """Asks a judge about latents of a finished cache, and keeps its answers in a folder.

    A run that was stopped goes on: latents with an explanation, a flag and a decision are left
    out, and of one with an explanation only the rest is asked for. What is asked about a latent
    does not depend on the others or on where the run was stopped, so a client with a store finds
    every answer that it has had.

    Args:
        cache: in `<folder>/latents`.
        folder: where the results go.
        cfg: what the judge is shown.
        run: the crosscoder's run folder, for delphi's run_config.json.
        judge: its name, which the folder keeps; "none" keeps nothing, as nobody is asked.
        scores: another folder for `scores/` and `interpretability/`.

    Raises ValueError if the folder holds answers to other questions (`cfg` or `judge` differ).
    """

    def __init__(
        self,
        cache: CrosscoderLatentCache,
        folder: Path | str,
        cfg: JudgingConfig | None = None,
        *,
        run: Path | str = "",
        judge: str = "",
        scores: Path | str | None = None,
    ):
        self.cache, self.folder = cache, Path(folder)
        self.scores = Path(scores or folder)
        self.cfg = cfg or JudgingConfig()
        layout = cache.writer.layout
        if layout.ctx_len % self.cfg.example_ctx_len:
            raise ValueError(
                f"example_ctx_len={self.cfg.example_ctx_len} does not divide the cache's "
                f"ctx_len={layout.ctx_len}."
            )
        self.hookpoint = layout.hookpoint
        self.filter(_Prompts())  # refuses numbers of examples that do not fit
        for name in _FOLDERS:
            remove_leftovers(self.folder / name)
            remove_leftovers(self.scores / name)
        self.judged = judge != NO_JUDGE
        if self.judged:
            self._write_settings(run, judge)

    def name(self, latent: int) -> str:
        """delphi's name of a latent."""
        return str(Latent(self.hookpoint, latent))

    def pending(self, latents: Iterable[int], weaker: bool = True) -> list[int]:
        """Those of the latents that the judge has still to be asked about, in order.

        Dead latents are none of them: there is nothing to ask about. `weaker` asks about weaker
        passages too, see `run`.
        """
        found = Scored.load(self.scores)
        unexplained = set(self.unexplained(latents))
        return [
            latent
            for latent in self._alive(latents)
            if latent in unexplained
            or not found.tested(self.name(latent))
            or (weaker and found.to_hold_out(self.name(latent)))
        ]

    def unexplained(self, latents: Iterable[int]) -> list[int]:
        """Those of the latents that have no explanation and flag yet, in order."""
        return [
            latent
            for latent in self._alive(latents)
            if not flagging.done(self.folder, self.name(latent))
        ]

    def _alive(self, latents: Iterable[int]) -> list[int]:
        dead = self.cache.statistics.dead
        return [latent for latent in sorted(set(latents)) if not dead[latent]]

    async def explain(
        self, client: Client, latents: Iterable[int], max_concurrent: int = 16
    ) -> None:
        """Explain and flag those of the latents that are not; see `run`."""
        todo = self.unexplained(latents)
        if not todo:
            return
        records = Records(self.dataset(todo), self.cfg)
        explainer = FlaggingExplainer(client)

        async def explain(record: LatentRecord) -> None:
            flagging.save(await explainer(record), self.folder)

        async with progress(len(todo), "Explaining") as bar:
            await each(records, explain, max_concurrent, bar)
        for latent in set(todo) - records.seen:
            self._flag_without_examples(latent)

    async def sort(self, client: Client, latents: Iterable[int], max_concurrent: int = 16) -> None:
        """Give those of the latents that were flagged a category (Tables 9 and 10)."""
        flags = flagging.load_flags(self.folder)
        todo = [
            name
            for name in map(self.name, latents)
            if name in flags and flags[name].harmful and not categories.done(self.folder, name)
        ]
        sorter = CategoryJudge(client)

        async def sort(name: str) -> Categorized:
            explanation = flagging.load_explanation(self.folder, name) or flagging.UNPARSED
            return await sorter(name, explanation, flags[name].reason)

        await ask_all(
            categories.CATEGORIZED,
            self.folder,
            [Todo(name, partial(sort, name), settled) for name in todo],
            max_concurrent,
            "Sorting flagged latents",
            "latent",
        )

    async def run(
        self,
        client: Client,
        latents: Iterable[int],
        max_concurrent: int = 16,
        weaker: bool = True,
    ) -> None:
        """Explain, flag and score the pending ones of the latents.

        With `weaker` those that pass the test are scored on weaker passages too (`held_out`).
        Whatever the client does, every latent ends with a flag and a decision, which say what went
        wrong; only exceptions that are no `Exception`, such as BudgetExceeded, get out.
        """
        pending, before = self.pending(latents, weaker), Scored.load(self.scores)
        if not pending:
            return
        records = Records(self.dataset(pending), self.cfg)
        explainer, test = FlaggingExplainer(client), self.filter(client)

        async def judge(record: LatentRecord) -> None:
            found = flagging.load(record, self.folder)
            if found is None:
                found = flagging.save(await explainer(record), self.folder)
            found.record.explanation = found.explanation
            name = str(record.latent)
            decision = before.decisions.get(name)
            if decision is None or not decision.final:
                decision = interpretability.save(await test(found.record), self.scores)
            if weaker and decision.interpretable:
                held_out.save(await held_out_detection(test, found.record), name, self.scores)

        async with progress(len(pending), "Explaining and scoring") as bar:
            await each(records, judge, max_concurrent, bar)
        for latent in set(pending) - records.seen:
            self._record_without_examples(latent)

    def prompts(self, latents: Sequence[int], weaker: bool = True) -> list[list[dict[str, str]]]:
        """What would be asked about latents at most, with a placeholder for each explanation."""
        client = _Prompts()
        explainer, test = FlaggingExplainer(client), self.filter(client)

        async def ask() -> None:
            logger = logging.getLogger("delphi")
            level = logger.level
            logger.setLevel(logging.CRITICAL)  # the answers are placeholders
            try:
                async for record in Records(self.dataset(latents), self.cfg):
                    record.explanation = (await explainer(record)).explanation
                    await test(record)
                    if weaker:
                        await held_out_detection(test, record)
            finally:
                logger.setLevel(level)

        if len(latents):
            asyncio.run(ask())
        return client.asked

    def dataset(self, latents: Sequence[int]) -> LatentDataset:
        """delphi's dataset of these latents."""
        return self.cache.dataset(
            self.sampler_config, self.constructor_config, torch.tensor(sorted(latents))
        )

    def filter(self, client: Client) -> InterpretabilityFilter:
        """The detection test."""
        cfg = self.cfg
        return InterpretabilityFilter(
            client,
            tokenizer=compat.TokenwiseTokenizer(self.cache.text.tokenizers[self.cache.source]),
            n_examples_shown=cfg.n_examples_shown,
            n_top=cfg.n_top,
            n_random=cfg.n_random,
            threshold=cfg.threshold,
        )

    @property
    def sampler_config(self) -> SamplerConfig:
        # The detection test picks its own examples.
        return SamplerConfig(
            n_examples_train=self.cfg.num_examples, n_examples_test=0, train_type="top"
        )

    @property
    def constructor_config(self) -> ConstructorConfig:
        return ConstructorConfig(
            example_ctx_len=self.cfg.example_ctx_len,
            min_examples=1,  # the detection test says which have too few
            n_non_activating=self.cfg.n_random,
            non_activating_source="random",
        )

    def _record_without_examples(self, latent: int) -> None:
        record = self._flag_without_examples(latent)
        decision = interpretability.Interpretability(None, None, not_scorable=_BEHIND_THE_LAST_ROW)
        interpretability.save(InterpretabilityResult(record, [], decision), self.scores)

    def _flag_without_examples(self, latent: int) -> LatentRecord:
        record = LatentRecord(Latent(self.hookpoint, latent))
        flag = flagging.Flag(str(record.latent), "failed", error=_BEHIND_THE_LAST_ROW)
        flagging.save(FlaggedResult(record, flagging.MISSING, flag), self.folder)
        return record

    def _write_settings(self, run: Path | str, judge: str) -> None:
        """delphi's own record of a run, which also says what the answers are answers to."""
        layout = self.cache.writer.layout
        config = RunConfig(
            cache_cfg=CacheConfig(cache_ctx_len=layout.ctx_len, n_splits=layout.n_splits),
            constructor_cfg=self.constructor_config,
            sampler_cfg=self.sampler_config,
            model=self.cache.text.models[self.cache.source],
            sparse_model=str(run),
            hookpoints=[self.hookpoint],
            explainer_model=judge,
            explainer_provider="delphi_adapters",
            scorers=["detection"],
            num_examples_per_scorer_prompt=self.cfg.n_examples_shown,
        ).to_dict()
        questions = {"judge": judge, "hookpoint": self.hookpoint, **asdict(self.cfg)}
        path = self.folder / "run_config.json"
        if path.exists():
            remedy = f"Restore it, or delete the folder '{self.folder}' and ask again."
            found = read_json(path, _RunConfigFile, remedy).get("questions", {})
            different = sorted(k for k in {*found, *questions} if found.get(k) != questions.get(k))
            if different:
                raise ValueError(
                    f"'{self.folder}' holds answers to other questions ({', '.join(different)} "
                    f"differ). Choose another folder, or delete this one."
                )
        atomic_write_json(path, {**config, "questions": questions})
        counts = {self.hookpoint: torch.from_numpy(self.cache.statistics.firings)}
        with atomic_path(self.folder / "log" / "hookpoint_firing_counts.pt") as temporary:
            torch.save(counts, temporary)


@dataclass(frozen=True)
class Scored:
    """What is kept of both tests, by the latents' names."""

    decisions: dict[str, Interpretability]
    held_out: dict[str, HeldOut]

    @classmethod
    def load(cls, folder: Path) -> Scored:
        """Of a folder that may not be there yet."""
        if not folder.exists():
            return cls({}, {})
        return cls(interpretability.load(folder), held_out.load(folder))

    def tested(self, name: str) -> bool:
        """Whether there is a decision that stays."""
        decision = self.decisions.get(name)
        return decision is not None and decision.final

    def to_hold_out(self, name: str) -> bool:
        """Whether a latent that passed has still to be tested on weaker passages."""
        decision, held = self.decisions.get(name), self.held_out.get(name)
        return bool(decision and decision.interpretable) and not (held and held.final)


class _RunConfigFile(TypedDict, total=False):
    questions: dict[str, Any]


class Records:
    """A dataset's records one after another, with no more examples than tests show.

    delphi's own iteration prepares several at once in threads that share the generators of random
    and torch, so that examples differ from run to run.
    """

    def __init__(self, dataset: LatentDataset, cfg: JudgingConfig):
        self.dataset, self.cfg = dataset, cfg
        self.seen: set[int] = set()

    async def __aiter__(self) -> AsyncIterator[LatentRecord]:
        for buffer in self.dataset.buffers:
            latents = iter(buffer)
            while (data := await asyncio.to_thread(next, latents, None)) is not None:
                record = await asyncio.to_thread(self.dataset._process_latent, data)
                if record is not None:
                    latent = record.latent
                    record.examples = kept_passages(record.examples, self.cfg.n_top, latent)
                    self.seen.add(record.latent.latent_index)
                    yield record


class _Prompts(Client):
    """Notes what it is asked."""

    def __init__(self):
        super().__init__("none")
        self.asked: list[list[dict[str, str]]] = []

    async def generate(self, prompt: Any, **kwargs: Any) -> Response:
        self.asked.append(prompt)
        words = "what a latent stands for, in about as many words as an explanation has " * 2
        return Response(text=f"[EXPLANATION]: {words}\n[HARMFUL]: no\n[HARMFUL_REASON]: {words}")
