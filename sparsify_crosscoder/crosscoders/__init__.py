"""The crosscoders: models that reconstruct several sources from one sparse code."""

from ..world import World
from .base import Crosscoder, CrosscoderOutput
from .dfc import DedicatedFeatureCrosscoder
from .dsf import DesignatedSharedFeatureCrosscoder
from .partition import Block, Group, Partition
from .rdfc import ResidualDedicatedFeatureCrosscoder
from .sparse_ops import SparseCode

__all__ = [
    "Block",
    "Crosscoder",
    "CrosscoderOutput",
    "DedicatedFeatureCrosscoder",
    "DesignatedSharedFeatureCrosscoder",
    "Group",
    "Partition",
    "ResidualDedicatedFeatureCrosscoder",
    "SparseCode",
    "World",
]
