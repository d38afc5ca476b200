# Half of CIFAR-100 (see cifar100.py): the first 50 classes of cifar100_10x10.py's order, five
# experiences of ten classes each, in an order that the seed draws.

# fmt: off
_classes = [
    'road', 'palm_tree', 'snake', 'bicycle', 'cloud', 'table', 'train', 'rabbit', 'shrew',
    'skyscraper', 'lamp', 'tractor', 'bear', 'tulip', 'otter', 'bottle', 'crab', 'squirrel', 'lion',
    'kangaroo', 'pickup_truck', 'rose', 'snail', 'aquarium_fish', 'tank', 'cattle', 'castle',
    'mouse', 'cup', 'orange', 'bus', 'streetcar', 'lobster', 'sunflower', 'bee', 'pine_tree',
    'sweet_pepper', 'can', 'camel', 'lizard', 'trout', 'lawn_mower', 'seal', 'plain', 'spider',
    'oak_tree', 'chair', 'bowl', 'elephant', 'orchid',
]
# fmt: on
_train = dict(type='kdtasks.classification.data.cifar100', classes=_classes)
_stream = dict(type='kdtasks.incremental.data.class_incremental', sizes=(10,) * 5)
data = dict(
    train=dict(type='kdtasks.incremental.data.experiences', stream=dict(_stream, dataset=_train)),
    test=dict(
        type='kdtasks.incremental.data.experiences',
        test=True,
        stream=dict(_stream, dataset=dict(_train, train=False)),
    ),
    batch_size=64,
    test_batch_size=500,
)
