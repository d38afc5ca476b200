"""What the engine takes from mmengine's slow part, which is imported here and nowhere else.

Where they are installed, mmengine also imports the packages below, to give their optimizers short
names. Configs name optimizers by full paths, so that nobody waits for it here (1.5 s of
transformers); whoever needs such a package imports it as ever.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast


@contextmanager
def _hidden(packages: Sequence[str]) -> Iterator[None]:
    """As if the packages were not installed, unless somebody has imported them already."""
    modules = cast(dict[str, Any], sys.modules)
    names = [name for name in packages if name not in modules]
    modules.update(dict.fromkeys(names))  # None is Python's own sign for: not to be imported
    try:
        yield
    finally:
        for name in names:
            del modules[name]


with _hidden(("bitsandbytes", "dadaptation", "lion_pytorch", "Sophia", "transformers")):
    from mmengine.hooks import Hook
    from mmengine.optim import OptimWrapper
    from mmengine.optim.scheduler.param_scheduler import ReduceOnPlateauParamScheduler
    from mmengine.optim.scheduler.param_scheduler import _ParamScheduler as ParamScheduler
    from mmengine.registry import HOOKS, PARAM_SCHEDULERS, VISBACKENDS
    from mmengine.runner import BaseLoop, Runner
    from mmengine.visualization import Visualizer
    from mmengine.visualization.vis_backend import BaseVisBackend

__all__ = [
    "HOOKS",
    "PARAM_SCHEDULERS",
    "VISBACKENDS",
    "BaseLoop",
    "BaseVisBackend",
    "Hook",
    "OptimWrapper",
    "ParamScheduler",
    "ReduceOnPlateauParamScheduler",
    "Runner",
    "Visualizer",
]
