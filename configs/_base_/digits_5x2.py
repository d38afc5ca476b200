# scikit-learn's 1,797 real handwritten digits, 8x8, grey, which come with the package: five
# experiences of two classes each, in an order that the seed draws. 30 % are kept for testing.
_stream = dict(type='kdtasks.incremental.data.class_incremental', sizes=(2,) * 5)
data = dict(
    train=dict(
        type='kdtasks.incremental.data.experiences',
        stream=dict(
            _stream, dataset=dict(type='kdtasks.classification.data.digits', augment=dict(crop=1))
        ),
    ),
    test=dict(
        type='kdtasks.incremental.data.experiences',
        test=True,
        stream=dict(_stream, dataset=dict(type='kdtasks.classification.data.digits', train=False)),
    ),
    batch_size=32,
)
