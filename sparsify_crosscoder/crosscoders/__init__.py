"""The crosscoders: models that reconstruct several sources from one sparse code."""

from ..world import World
from .codes import SparseCode
from .crosscoder import Crosscoder
from .dfc import DedicatedFeatureCrosscoder, DFCConfig
from .dsf import DesignatedSharedFeatureCrosscoder, DSFConfig
from .outputs import Batch, CrosscoderOutput
from .partition import Block, Group, Partition
from .rdfc import RDFCConfig, ResidualDedicatedFeatureCrosscoder

__all__ = [
    "Batch",
    "Block",
    "Crosscoder",
    "CrosscoderOutput",
    "DFCConfig",
    "DSFConfig",
    "DedicatedFeatureCrosscoder",
    "DesignatedSharedFeatureCrosscoder",
    "Group",
    "Partition",
    "RDFCConfig",
    "ResidualDedicatedFeatureCrosscoder",
    "SparseCode",
    "World",
]
