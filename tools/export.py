"""Write a run's student for use elsewhere, checked on real test images: plain weights, safetensors
or ONNX.

    python tools/export.py work_dirs/classification_default/seed0 --format onnx
"""

from kdtasks.engine.cli import export

if __name__ == "__main__":
    export()
