# COCO 2017, below KDTASKS_DATA as coco/{train2017,val2017,annotations}; or say where: --cfg-options
# data.train.root=…
data = dict(
    train=dict(type='kdtasks.detection.data.coco2017', train=True, keep_empty=False),
    test=dict(type='kdtasks.detection.data.coco2017', train=False),
    batch_size=16,
    test_batch_size=16,
    workers=8,
)
