"""The mechanism that every method stands on; imports torch only."""

from kdtasks.core.distiller import Distiller
from kdtasks.core.recorder import FeatureRecorder
from kdtasks.core.schedule import Cosine, Linear, Steps
from kdtasks.core.stages import Stage
from kdtasks.core.teacher import Teacher

__all__ = ["Cosine", "Distiller", "FeatureRecorder", "Linear", "Stage", "Steps", "Teacher"]
