"""The standard crosscoder (section 2.1): nothing is tied or left out."""

from ..config import CrosscoderConfig
from ..registry import Architecture
from .crosscoder import Crosscoder

STANDARD = Architecture(
    "crosscoder",
    CrosscoderConfig,
    Crosscoder,
    description="standard crosscoder: every latent reads and writes every model",
)
