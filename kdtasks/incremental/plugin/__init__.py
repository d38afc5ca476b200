"""The door to avalanche: our methods in its strategies, guards for its benchmarks, and checkpoints
that load.

- :class:`LwFPlugin`, :class:`LwFMCPlugin`, :class:`LwMPlugin`, :class:`GlobalDistillationPlugin`,
  :class:`ICaRLPlugin`, :class:`BiCPlugin`, :class:`DERPlugin` and :class:`WAPlugin` go into
  ``plugins=[…]`` of any of its supervised strategies:
  ``SupervisedTemplate(model=…, optimizer=…, plugins=[LwFPlugin()])``.
- :func:`checked_benchmark` finds the classes that a benchmark lost, and sorts its lists of classes.
- :func:`checkpoint` and :func:`resume` stop and continue a strategy, to the same weights, by
  tensors and lists alone.

The plugins have avalanche's events as methods and need no base class of it: it looks only for the
names. It is imported where one of its classes has to be known, and not before.

Columns of logits are class numbers, as everywhere in avalanche, in whatever order the classes come.
"""

from kdtasks.incremental.avalanche_benchmarks import checked_benchmark, classes_of
from kdtasks.incremental.plugin.bic import BiCPlugin
from kdtasks.incremental.plugin.checkpoints import checkpoint, resume
from kdtasks.incremental.plugin.exemplars import ICaRLPlugin
from kdtasks.incremental.plugin.gd import GlobalDistillationPlugin
from kdtasks.incremental.plugin.lwf import LwFMCPlugin, LwFPlugin
from kdtasks.incremental.plugin.lwm import LwMPlugin
from kdtasks.incremental.plugin.replay import DERPlugin, WAPlugin

__all__ = [
    "BiCPlugin",
    "DERPlugin",
    "GlobalDistillationPlugin",
    "ICaRLPlugin",
    "LwFMCPlugin",
    "LwFPlugin",
    "LwMPlugin",
    "WAPlugin",
    "checked_benchmark",
    "checkpoint",
    "classes_of",
    "resume",
]
