"""Clients for delphi: Anthropic's Messages and Message Batches APIs, and local models.

`AnthropicClient` sends one request at a time, `BatchAnthropicClient` collects many into Message
Batches at half price, `TransformersClient` runs a local Hugging Face model. Names are loaded on
first use.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .anthropic_client import (
        AnthropicClient,
        MissingAPIKey,
        RecordedResponse,
        RequestFailed,
    )
    from .batches import BatchAnthropicClient
    from .ledger import (
        BudgetExceeded,
        Estimate,
        Ledger,
        Price,
        RunStopped,
        UnknownPrice,
        load_prices,
    )
    from .records import RequestRecord, Usage
    from .requests import Request, UnsupportedArgument
    from .results import ResultStore
    from .retries import RetryPolicy
    from .transformers_client import PromptTooLong, TransformersClient

__all__ = [
    "AnthropicClient",
    "BatchAnthropicClient",
    "BudgetExceeded",
    "Estimate",
    "Ledger",
    "MissingAPIKey",
    "Price",
    "PromptTooLong",
    "RecordedResponse",
    "Request",
    "RequestFailed",
    "RequestRecord",
    "ResultStore",
    "RetryPolicy",
    "RunStopped",
    "TransformersClient",
    "UnknownPrice",
    "UnsupportedArgument",
    "Usage",
    "load_prices",
]

_MODULES = {
    "AnthropicClient": "anthropic_client",
    "BatchAnthropicClient": "batches",
    "BudgetExceeded": "ledger",
    "Estimate": "ledger",
    "Ledger": "ledger",
    "MissingAPIKey": "anthropic_client",
    "Price": "ledger",
    "PromptTooLong": "transformers_client",
    "RecordedResponse": "anthropic_client",
    "Request": "requests",
    "RequestFailed": "anthropic_client",
    "RequestRecord": "records",
    "ResultStore": "results",
    "RetryPolicy": "retries",
    "RunStopped": "ledger",
    "TransformersClient": "transformers_client",
    "UnknownPrice": "ledger",
    "UnsupportedArgument": "requests",
    "Usage": "records",
    "load_prices": "ledger",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
