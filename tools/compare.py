"""Train configs over seeds, each beside its control, and say what the teacher brought.

python tools/compare.py configs/classification/default.py --seeds 0 1 2 3 4
"""

from kdtasks.engine.cli import compare

if __name__ == "__main__":
    compare()
