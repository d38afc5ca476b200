"""What the library costs, a file a task; ``tools/benchmark.py`` prints it."""
