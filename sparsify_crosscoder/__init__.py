"""Crosscoders over language models of different width, depth and tokenizer.

Public names are loaded on first use: the `.pth` file of this package imports it at every start of
Python, so it must stay free of imports, those of the standard library included.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .config import CrosscoderConfig
    from .crosscoders import (
        Crosscoder,
        DedicatedFeatureCrosscoder,
        DesignatedSharedFeatureCrosscoder,
        DFCConfig,
        DSFConfig,
        RDFCConfig,
        ResidualDedicatedFeatureCrosscoder,
    )
    from .crosscoders.partition import Partition
    from .interventions.effects import dose_response
    from .interventions.generation import generate
    from .interventions.persona import Persona, persona_vectors
    from .interventions.steering import Steering, steered
    from .interventions.stitching import Stitching, fit_stitching
    from .interventions.transfer import transfer
    from .interventions.vectors import SteeringVector
    from .registry import Architecture, register_architecture
    from .store.store import ActivationStore
    from .text.alignment import AlignedTokens, NonContent, align_batch, align_tokens
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
    "Persona",
    "RDFCConfig",
    "RDFCTrainer",
    "ResidualDedicatedFeatureCrosscoder",
    "Steering",
    "SteeringVector",
    "Stitching",
    "__version__",
    "align_batch",
    "align_tokens",
    "dose_response",
    "fit_stitching",
    "generate",
    "persona_vectors",
    "register_architecture",
    "steered",
    "transfer",
]

_MODULES = {
    "ActivationStore": "store.store",
    "AlignedTokens": "text.alignment",
    "Architecture": "registry",
    "Crosscoder": "crosscoders",
    "CrosscoderConfig": "config",
    "CrosscoderTrainer": "training",
    "DFCConfig": "crosscoders",
    "DFCTrainer": "training",
    "DSFConfig": "crosscoders",
    "DSFTrainer": "training",
    "DedicatedFeatureCrosscoder": "crosscoders",
    "DesignatedSharedFeatureCrosscoder": "crosscoders",
    "NonContent": "text.alignment",
    "Partition": "crosscoders.partition",
    "Persona": "interventions.persona",
    "RDFCConfig": "crosscoders",
    "RDFCTrainer": "training",
    "ResidualDedicatedFeatureCrosscoder": "crosscoders",
    "Steering": "interventions.steering",
    "SteeringVector": "interventions.vectors",
    "Stitching": "interventions.stitching",
    "align_batch": "text.alignment",
    "align_tokens": "text.alignment",
    "dose_response": "interventions.effects",
    "fit_stitching": "interventions.stitching",
    "generate": "interventions.generation",
    "persona_vectors": "interventions.persona",
    "register_architecture": "registry",
    "steered": "interventions.steering",
    "transfer": "interventions.transfer",
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
