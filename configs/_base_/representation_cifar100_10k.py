# A ResNet-8 backbone on 10,000 images of CIFAR-100, 100 of each class, whose labels only the stage
# "supervised" reads; tested by what 5,000 of them say of 2,000 test images. The teacher sees the
# student's views, two of each image, enlarged to 96 pixels; once, for what it says is kept.
_base_ = ['lite0.py']
task = 'kdtasks.representation.trainer'
distiller = dict(type='kdtasks.representation.distiller.RepresentationDistiller')

student = dict(
    type='kdtasks.representation.models.backbone',
    network=dict(type='kdtasks.classification.models.resnet8'),
)
teacher = dict(input_size=96)
stages = dict(type='kdtasks.representation.stages.with_controls', supervised=dict(num_classes=100))
cache = dict(views=2)

data = dict(
    train=dict(type='kdtasks.representation.data.cifar100', per_class=100),
    test=dict(
        type='kdtasks.representation.data.cifar100_neighbours', per_class=50, queries_per_class=20
    ),
    batch_size=128,
    test_batch_size=250,
)
optimizer = dict(type='torch.optim.AdamW', lr=2e-3, weight_decay=0.05)
schedule = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=100),
    dict(type='CosineAnnealingLR', begin=100, by_epoch=False),
]
length = 8  # epochs of 78 steps
val_interval = 4
channels_last = True
threads = 1
