"""The toy model: pairs of activations made of known concepts, some of one model alone."""

from .metrics import ToyScores, score
from .model import ToyConfig, ToyModel
from .stream import ToyStream

__all__ = ["ToyConfig", "ToyModel", "ToyScores", "ToyStream", "score"]
