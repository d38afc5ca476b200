"""Evaluate weights on a config's test data.

    python tools/test.py configs/general/default.py work_dirs/general_default/seed0/student.pth
"""

from kdtasks.engine.cli import test

if __name__ == "__main__":
    test()
