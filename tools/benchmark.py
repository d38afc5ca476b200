"""What the library costs: each step through kdtasks against the same step written by hand.

    python tools/benchmark.py [--rows kd_step …] [--rounds 30] [--device cpu|cuda] [--json FILE]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.table import main
from kdtasks.engine.cli import pipe_may_close

if __name__ == "__main__":
    with pipe_may_close():
        sys.exit(main())
