"""What the library costs: each step through kdtasks against the same step written by hand.

python tools/benchmark.py [--rows kd_step …] [--rounds 30] [--device cpu|cuda] [--json FILE]
python tools/benchmark.py --curves docs/cost.json
"""

from kdtasks.engine.cli import benchmark

if __name__ == "__main__":
    benchmark()
