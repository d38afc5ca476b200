"""kdtasks: knowledge distillation for vision, task by task."""

__version__ = "0.1.0"
