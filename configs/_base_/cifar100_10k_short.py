# A ResNet-8 on 10,000 images of CIFAR-100, 100 of each class, and all 10,000 test images, at half
# their size, 16 x 16: what methods are compared on, short enough for two CPU cores of any kind. The
# teacher, of the same depth and twice the width, has the same images.
_base_ = ['cifar100.py']
task = 'kdtasks.classification.trainer'

student = dict(type='kdtasks.classification.models.resnet8', num_classes=100)

data = dict(train=dict(per_class=100, size=16), test=dict(size=16), batch_size=128)
optimizer = dict(type='torch.optim.SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
schedule = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=100),
    dict(type='CosineAnnealingLR', begin=100, by_epoch=False),
]
length = 8  # epochs of 78 steps
channels_last = True
val_interval = 2
threads = 1
