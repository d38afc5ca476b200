# BCCD as in bccd.py, but only 20 of the 205 training photos have labels, for the teacher too.
_base_ = ['bccd.py']
data = dict(
    train=dict(
        _delete_=True,
        type='kdtasks.detection.data.few_labels',
        images=20,
        dataset=dict(type='kdtasks.detection.data.bccd', train=True, size=(180, 240)),
    ),
    unlabelled_per_batch=8,
    iterations_per_epoch=25,  # as many steps as with all labels
)
