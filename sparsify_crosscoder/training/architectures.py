"""The architectures that this package registers (entry points in `sparsify.trainers`)."""

from ..config import CrosscoderConfig, DFCConfig, DSFConfig, RDFCConfig
from ..crosscoders import (
    Crosscoder,
    DedicatedFeatureCrosscoder,
    DesignatedSharedFeatureCrosscoder,
    ResidualDedicatedFeatureCrosscoder,
)
from ..registry import Architecture
from .trainer import CrosscoderTrainer, DFCTrainer, DSFTrainer, RDFCTrainer

STANDARD = Architecture(
    "crosscoder",
    CrosscoderConfig,
    Crosscoder,
    CrosscoderTrainer,
    "standard crosscoder: every latent reads and writes every model",
)
DFC = Architecture(
    "dfc",
    DFCConfig,
    DedicatedFeatureCrosscoder,
    DFCTrainer,
    "dedicated features: blocks of latents exclusive to each model",
)
RDFC = Architecture(
    "rdfc",
    RDFCConfig,
    ResidualDedicatedFeatureCrosscoder,
    RDFCTrainer,
    "residual DFC: exclusive latents read what the other models do not predict",
)
DSF = Architecture(
    "dsf",
    DSFConfig,
    DesignatedSharedFeatureCrosscoder,
    DSFTrainer,
    "designated shared features: a dense block with tied decoders (equal widths only)",
)
