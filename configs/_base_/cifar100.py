# CIFAR-100: 50,000 + 10,000 images of 32x32, 100 classes. Below KDTASKS_DATA, as
# cifar100/{train,test}/<class>/*.png or torchvision's cifar-100-python; or say where: --cfg-options
# data.train.root=… data.test.root=…
data = dict(
    # random crop (4 black pixels around) and flip
    train=dict(type='kdtasks.classification.data.cifar100', train=True),
    test=dict(type='kdtasks.classification.data.cifar100', train=False),
    batch_size=64,
    test_batch_size=500,
)
