"""Clients for delphi: Anthropic's Messages and Message Batches APIs, and local models.

`AnthropicClient` sends one request at a time, `BatchAnthropicClient` collects many into Message
Batches at half price, `TransformersClient` runs a local Hugging Face model. Public names are those
of `__init__.pyi`, loaded on first use.
"""

from sparsify_crosscoder.public_names import modules_of


def __getattr__(name: str) -> object:
    if name == "__all__":
        value: object = sorted(modules_of(__name__))
    elif name.startswith("__") or name not in (modules := modules_of(__name__)):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    else:
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{modules[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *modules_of(__name__)})
