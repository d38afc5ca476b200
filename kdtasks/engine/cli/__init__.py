"""The command lines of tools/*.py and of ``kdtasks``. ``--help`` needs no torch."""

from kdtasks.engine.cli.benchmarking import benchmark
from kdtasks.engine.cli.comparing import compare, results
from kdtasks.engine.cli.exporting import export
from kdtasks.engine.cli.testing import test
from kdtasks.engine.cli.training import train

__all__ = ["benchmark", "compare", "export", "results", "test", "train"]
