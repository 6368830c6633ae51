"""An audit: from two models' names, or a run, to a report, stage by stage.

The package is the function too: `from delphi_adapters import audit` and `audit(run)`, whichever of
its modules are imported before.
"""

import sys
from types import ModuleType
from typing import Any


class _Audit(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        from .api import audit

        return audit(*args, **options)


sys.modules[__name__].__class__ = _Audit
