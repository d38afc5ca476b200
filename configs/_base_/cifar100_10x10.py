# CIFAR-100 (see cifar100.py), ten experiences of ten classes, in the order that papers use:
# numpy.random.seed(1993); numpy.random.permutation(100). Without `order` the run's seed draws one.
#

# fmt: off
_order = [
    68, 56, 78, 8, 23, 84, 90, 65, 74, 76, 40, 89, 3, 92, 55, 9, 26, 80, 43, 38, 58, 70, 77, 1, 85,
    19, 17, 50, 28, 53, 13, 81, 45, 82, 6, 59, 83, 16, 15, 44, 91, 41, 72, 60, 79, 52, 20, 10, 31,
    54, 37, 95, 14, 71, 96, 98, 97, 2, 64, 66, 42, 22, 35, 86, 24, 34, 87, 21, 99, 0, 88, 27, 18,
    94, 11, 12, 47, 25, 30, 46, 62, 69, 36, 61, 7, 63, 75, 5, 32, 4, 51, 48, 73, 93, 39, 67, 29, 49,
    57, 33,
]
# fmt: on
_stream = dict(type='kdtasks.incremental.data.class_incremental', sizes=(10,) * 10, order=_order)
data = dict(
    train=dict(
        type='kdtasks.incremental.data.experiences',
        stream=dict(_stream, dataset=dict(type='kdtasks.classification.data.cifar100')),
    ),
    test=dict(
        type='kdtasks.incremental.data.experiences',
        test=True,
        stream=dict(
            _stream, dataset=dict(type='kdtasks.classification.data.cifar100', train=False)
        ),
    ),
    batch_size=128,
    test_batch_size=500,
)
