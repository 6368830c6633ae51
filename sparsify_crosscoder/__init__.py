"""Crosscoders over language models of different width, depth and tokenizer.

Public names are loaded on first use: the `.pth` file of this package imports it at every start of
Python, so it must stay free of imports, those of the standard library included.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .activations.alignment import AlignedTokens, NonContent, align_batch, align_tokens
    from .activations.store import ActivationStore
    from .config import CrosscoderConfig, DFCConfig, DSFConfig, RDFCConfig
    from .crosscoders import (
        Crosscoder,
        DedicatedFeatureCrosscoder,
        DesignatedSharedFeatureCrosscoder,
        ResidualDedicatedFeatureCrosscoder,
    )
    from .crosscoders.partition import Partition
    from .interventions.stitching import Stitching, fit_stitching
    from .registry import Architecture, register_architecture
    from .training import CrosscoderTrainer, DFCTrainer, DSFTrainer, RDFCTrainer

    __version__: str

__all__ = [
    "ActivationStore",
    "AlignedTokens",
    "Architecture",
    "Crosscoder",
    "CrosscoderConfig",
    "CrosscoderTrainer",
    "DFCConfig",
    "DFCTrainer",
    "DSFConfig",
    "DSFTrainer",
    "DedicatedFeatureCrosscoder",
    "DesignatedSharedFeatureCrosscoder",
    "NonContent",
    "Partition",
    "RDFCConfig",
    "RDFCTrainer",
    "ResidualDedicatedFeatureCrosscoder",
    "Stitching",
    "__version__",
    "align_batch",
    "align_tokens",
    "fit_stitching",
    "register_architecture",
]

_MODULES = {
    "ActivationStore": "activations.store",
    "AlignedTokens": "activations.alignment",
    "Architecture": "registry",
    "Crosscoder": "crosscoders",
    "CrosscoderConfig": "config",
    "CrosscoderTrainer": "training",
    "DFCConfig": "config",
    "DFCTrainer": "training",
    "DSFConfig": "config",
    "DSFTrainer": "training",
    "DedicatedFeatureCrosscoder": "crosscoders",
    "DesignatedSharedFeatureCrosscoder": "crosscoders",
    "NonContent": "activations.alignment",
    "Partition": "crosscoders.partition",
    "RDFCConfig": "config",
    "RDFCTrainer": "training",
    "ResidualDedicatedFeatureCrosscoder": "crosscoders",
    "Stitching": "interventions.stitching",
    "align_batch": "activations.alignment",
    "align_tokens": "activations.alignment",
    "fit_stitching": "interventions.stitching",
    "register_architecture": "registry",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        value = version("sparsify-crosscoder")
    elif name in _MODULES:
        from importlib import import_module

        value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
