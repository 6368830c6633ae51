"""The architectures that this package registers (entry points in `sparsify.trainers`)."""

from ..crosscoders.dfc import DFC
from ..crosscoders.dsf import DSF
from ..crosscoders.rdfc import RDFC
from ..crosscoders.standard import STANDARD

__all__ = ["DFC", "DSF", "RDFC", "STANDARD"]
