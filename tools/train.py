"""Train a config: every stage, the table, results.json, student.pth, report.html.

python tools/train.py configs/classification/default.py
torchrun --nproc-per-node 8 tools/train.py CONFIG --launcher pytorch
"""

from kdtasks.engine.cli import train

if __name__ == "__main__":
    train()
