"""The dtypes in which a store keeps activations, one module for each kind.

Another one is a `StoreDtype`, handed to `register_dtype` or offered as an entry point (`registry`).
"""

from .dtype import Encoded, StoreDtype
from .registry import dtype_names, get_dtype, register_dtype

__all__ = ["Encoded", "StoreDtype", "dtype_names", "get_dtype", "register_dtype"]
