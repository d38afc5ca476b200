# BCCD at its own size, 640x480; see bccd.py.
data = dict(
    train=dict(type='kdtasks.detection.data.bccd', train=True, in_memory=True),
    test=dict(type='kdtasks.detection.data.bccd', train=False, in_memory=True),
    batch_size=8,
    test_batch_size=8,
)
