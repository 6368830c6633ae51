"""The dtypes of stores by name: ours, those registered in this process, those of other packages.

A package offers one through an entry point in the group `sparsify_crosscoder.store_dtypes` whose
object is a `StoreDtype` of the entry point's name. Only the one that is asked for is imported.
"""

from __future__ import annotations

from ...offered import offered
from .dtype import StoreDtype
from .floats import BFLOAT16, FLOAT16, FLOAT32
from .int8 import INT8

ENTRY_POINT_GROUP = "sparsify_crosscoder.store_dtypes"

_known = {dtype.name: dtype for dtype in (BFLOAT16, FLOAT16, FLOAT32, INT8)}


def register_dtype(dtype: StoreDtype) -> None:
    """Make a dtype known in this process; raises ValueError where its name is taken."""
    if dtype.name in dtype_names():
        raise ValueError(f"There is a store dtype {dtype.name!r} already; choose another name.")
    _known[dtype.name] = dtype


def dtype_names() -> tuple[str, ...]:
    """The names of all dtypes, ours first; imports no other package."""
    of_others = sorted(entry.name for entry in offered(ENTRY_POINT_GROUP))
    return tuple(dict.fromkeys([*_known, *of_others]))


def get_dtype(name: str) -> StoreDtype:
    """A dtype by its name.

    Raises ValueError where there is none, or what a package offers under the name is none.
    """
    if name in _known:
        return _known[name]
    for entry in (entry for entry in offered(ENTRY_POINT_GROUP) if entry.name == name):
        dtype = entry.load()
        if not isinstance(dtype, StoreDtype) or dtype.name != name:
            raise ValueError(f"The store dtype {name!r} of {entry.value} is no StoreDtype of it.")
        return dtype
    raise ValueError(f"A store keeps activations as {', '.join(dtype_names())}, not {name!r}.")
