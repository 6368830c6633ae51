"""Clients for delphi: Anthropic's and OpenAI's APIs, servers that speak the latter, local models.

`AnthropicClient` and `OpenAIClient` send one request at a time, `BatchAnthropicClient` collects
many into Message Batches at half price, `TransformersClient` runs a local Hugging Face model. All
but the last are an `ApiClient`. Public names are those of `__init__.pyi`, loaded on first use.
"""

from sparsify_crosscoder.public_names import modules_of, public_value


def __getattr__(name: str) -> object:
    is_all = name == "__all__"
    value = sorted(modules_of(__name__)) if is_all else public_value(__name__, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *modules_of(__name__)})
