# Pascal VOC: 2007 and 2012 trainval for training, 2007 test for testing; below KDTASKS_DATA as
# VOCdevkit/{VOC2007,VOC2012}.
data = dict(
    train=dict(type='kdtasks.detection.data.voc0712', train=True),
    test=dict(type='kdtasks.detection.data.voc0712', train=False),
    batch_size=16,
    test_batch_size=16,
    workers=8,
)
