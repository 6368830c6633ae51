"""The architectures that this package registers (entry points in `sparsify.trainers`)."""

from ..config import CrosscoderConfig, DFCConfig, DSFConfig, RDFCConfig
from ..crosscoders import (
    Crosscoder,
    DedicatedFeatureCrosscoder,
    DesignatedSharedFeatureCrosscoder,
    ResidualDedicatedFeatureCrosscoder,
)
from ..registry import Architecture
from ..runs.artifacts import load_artifacts
from .trainer import CrosscoderTrainer, DFCTrainer, DSFTrainer, RDFCTrainer

STANDARD = Architecture(
    "crosscoder",
    CrosscoderConfig,
    Crosscoder,
    CrosscoderTrainer,
    load_artifacts,
    "standard crosscoder: every latent reads and writes every model",
)
DFC = Architecture(
    "dfc",
    DFCConfig,
    DedicatedFeatureCrosscoder,
    DFCTrainer,
    load_artifacts,
    "dedicated features: blocks of latents exclusive to each model",
)
RDFC = Architecture(
    "rdfc",
    RDFCConfig,
    ResidualDedicatedFeatureCrosscoder,
    RDFCTrainer,
    load_artifacts,
    "residual DFC: exclusive latents read what the other models do not predict",
)
DSF = Architecture(
    "dsf",
    DSFConfig,
    DesignatedSharedFeatureCrosscoder,
    DSFTrainer,
    load_artifacts,
    "designated shared features: a dense block with tied decoders (equal widths only)",
)
