"""Streams of experiences, and what a stage learns from and is tested on.

A stream is any sequence of objects with ``.dataset`` and ``.classes_in_this_experience``:
:func:`class_incremental` makes one of a classification data set, :func:`avalanche_stream` takes one
of an avalanche benchmark, and a function of your own may give another. Classes have the numbers of
the data set, in any order; the **columns** of the head are the classes in the order in which the
stream brings them. :func:`experiences` maps one to the other, once, for training, test and
exemplars alike.
"""

from kdtasks.incremental.data.sets import BatchedSet, IncrementalSet, experiences, unaugmented
from kdtasks.incremental.data.streams import (
    Experience,
    avalanche_stream,
    class_incremental,
    targets_of,
)

__all__ = [
    "BatchedSet",
    "Experience",
    "IncrementalSet",
    "avalanche_stream",
    "class_incremental",
    "experiences",
    "targets_of",
    "unaugmented",
]
