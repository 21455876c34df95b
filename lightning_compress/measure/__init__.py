"""What a network costs, counted and timed.

The name is that of a function too: ``lightning_compress.measure(module, example_input)`` is :func:`measure` of this
package.
"""

import sys
from types import ModuleType
from typing import Any

from lightning_compress.measure.cost import Cost, macs_by_module, measure
from lightning_compress.measure.latency import LatencyComparison, compare_latency
from lightning_compress.measure.runtimes import RUNTIMES, check_runtime, runner

__all__ = [
    "RUNTIMES",
    "Cost",
    "LatencyComparison",
    "check_runtime",
    "compare_latency",
    "macs_by_module",
    "measure",
    "runner",
]


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Cost:
        return measure(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
