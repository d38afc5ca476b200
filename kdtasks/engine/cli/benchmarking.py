"""tools/benchmark.py: what the library costs."""

import importlib
import sys
from collections.abc import Sequence

from kdtasks.engine.cli.endings import pipe_may_close
from kdtasks.engine.config_files import shared_folder


@pipe_may_close()
def benchmark(arguments: Sequence[str] | None = None) -> None:
    """tools/benchmark.py."""
    sys.path.insert(0, str(shared_folder("benchmarks").parent))
    raise SystemExit(importlib.import_module("benchmarks.table").main(arguments))
