"""Clients for delphi: Anthropic's Messages and Message Batches APIs, and local models.

`AnthropicClient` sends one request at a time, `BatchAnthropicClient` collects many into Message
Batches at half price, `TransformersClient` runs a local Hugging Face model. Public names are those
of `__init__.pyi`, loaded on first use.
"""

from sparsify_crosscoder.public_names import modules_of, public_value


def __getattr__(name: str) -> object:
    is_all = name == "__all__"
    value = sorted(modules_of(__name__)) if is_all else public_value(__name__, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *modules_of(__name__)})
