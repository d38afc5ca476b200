# CIFAR-100 for retrieval: 40,000 training images of the first 80 classes by name; 2,000 test images
# of the other 20, never seen in training. Where it lies: see cifar100.py.
data = dict(
    # random crop (4 pixels of black around) and flip
    train=dict(type='kdtasks.metric_learning.data.cifar100', train=True),
    test=dict(type='kdtasks.metric_learning.data.cifar100', train=False),
    batch_size=128,
    per_class=4,
    test_batch_size=500,
)
