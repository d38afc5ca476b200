"""Evaluate weights on a config's test data, or use them on a folder of images.

python tools/test.py configs/classification/default.py
work_dirs/classification_default/seed0/student.pth python tools/test.py
configs/super_resolution/default.py <student.pth> --images <photos> --out <new folder>
"""

from kdtasks.engine.cli import test

if __name__ == "__main__":
    test()
