"""The judge: who it is, what it may cost, and the client that asks it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from delphi.clients import Client

NO_JUDGE = "none"
"""The judge's name where nobody is asked."""

Provider = Literal["anthropic", "openai", "transformers"]
OPENAI = "openai:"
"""What the name of a judge behind OpenAI's API, or a server that speaks it, begins with."""

_OF_A_JUDGE = (
    *("provider", "base_url", "max_cost", "prices", "batch", "judge_answers", "max_tokens"),
)
_AT_LEAST_ONE = ("max_tokens", "concurrency", "max_concurrent")


@dataclass(frozen=True)
class JudgeConfig:
    """Who judges, what it may cost, and how much is asked at a time.

    Fields are named as the options of the commands, which their errors name.
    """

    judge: str | None = NO_JUDGE
    """A Claude model, `openai:` and the name of a model behind OpenAI's API or a server that speaks
    it, or the folder or name of a local chat model."""

    provider: Provider | None = None
    """Where the judge is; None: what its name says."""

    base_url: str | None = None
    """Of another server that speaks the provider's API."""

    max_cost: float | None = None
    """Dollars at most, for good."""

    prices: Path | None = None
    """File of prices, see `load_prices`."""

    batch: bool = False
    """By Message Batches."""

    judge_answers: Path | None = None
    """Folder for its answers, else `answers` in the folder of what is asked."""

    max_tokens: int | None = None
    """Of an answer: 1,024, or 512 of a local model, unless said otherwise."""

    concurrency: int = 8
    """Requests at a time."""

    max_concurrent: int | None = None
    """Items at a time; None: what fits the judge."""

    device: str | torch.device | None = None
    """Of a local judge."""

    trust_remote_code: bool = False
    structured: bool = True
    """Hold an API's answers to the schema of a question, where the model can be held to one."""

    @property
    def local(self) -> bool:
        """Whether the judge is a model that this process runs."""
        return self.asked_through == "transformers"

    @property
    def asked_through(self) -> Provider:
        """Where the judge is."""
        if self.provider is not None:
            return self.provider
        if str(self.judge).startswith(OPENAI):
            return "openai"
        return "anthropic" if str(self.judge).startswith("claude") else "transformers"

    @property
    def model(self) -> str:
        """Its name where it is."""
        return str(self.judge).removeprefix(OPENAI)

    def check(self) -> None:
        """Raises ValueError for options of a judge where there is none."""
        if self.judge == NO_JUDGE:
            for option in _OF_A_JUDGE:
                if self._given(option):
                    raise ValueError(f"--{option} goes with a judge: name one with --judge.")

    def _given(self, option: str) -> bool:
        value = getattr(self, option)
        return value is not None and value is not False


def make_client(judge: JudgeConfig, folder: Path, *, dry_run: bool = False) -> Client | None:
    """The judge's client; None in a dry run with a local one, which is not loaded.

    Its answers are kept in `judge.judge_answers`, else below `folder`. Raises ValueError for
    options that do not fit the judge, for a judge that costs something without `max_cost`, and
    without a key.
    """
    judge.check()
    if judge.judge is None or judge.judge == NO_JUDGE:
        raise ValueError("This is what a judge is asked for: name one with --judge.")
    for name in _AT_LEAST_ONE:
        if (value := getattr(judge, name)) is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}.")
    if judge.local:
        from .transformers_client import TransformersClient

        for option in ("batch", "max_cost", "prices", "base_url"):
            if judge._given(option):
                raise ValueError(
                    f"--{option} is for a judge behind an API; a local model costs nothing."
                )
        if dry_run:
            return None
        return TransformersClient(
            judge.judge,
            max_new_tokens=judge.max_tokens or 512,
            device=judge.device,
            trust_remote_code=judge.trust_remote_code,
        )
    if judge.batch and judge.asked_through == "openai":
        raise ValueError("--batch is for Claude models: leave it off for this judge.")
    if judge.max_cost is None and not dry_run and not _is_free(judge):
        raise ValueError(
            "Give --max_cost, the dollars that the judge may cost at most; --dry_run says how many "
            "that will be."
        )
    from .anthropic_client import AnthropicClient
    from .api_client import MissingAPIKey
    from .batches import BatchAnthropicClient
    from .openai_client import OpenAIClient

    kind = BatchAnthropicClient if judge.batch else AnthropicClient
    try:
        return (OpenAIClient if judge.asked_through == "openai" else kind)(
            judge.model,
            store=judge.judge_answers or folder / "answers",
            prices=judge.prices,
            max_cost=judge.max_cost,
            max_tokens=judge.max_tokens or 1024,
            concurrency=judge.concurrency,
            structured=judge.structured,
            base_url=judge.base_url,
        )
    except MissingAPIKey as error:
        raise ValueError(str(error)) from None


def _is_free(judge: JudgeConfig) -> bool:
    """Whether the judge is behind a server on this machine, and nobody gave it a price."""
    from .openai_client import is_here

    return judge.asked_through == "openai" and is_here(judge.base_url) and judge.prices is None


def fitting(client: Client) -> int:
    """Items at a time, where each asks for one answer after another."""
    from .batches import BatchAnthropicClient

    if isinstance(client, BatchAnthropicClient):
        return 20_000
    return 2 * getattr(client, "concurrency", 0) or getattr(client, "batch_size", 8)
