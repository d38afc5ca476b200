# ResNet-8 with a growing head, 4 epochs an experience: what two CPU cores can do.
task = 'kdtasks.incremental.trainer'

student = dict(
    type='kdtasks.incremental.models.growing',
    sizes=(10,) * 5,
    network=dict(type='kdtasks.classification.models.resnet8'),
)

optimizer = dict(type='torch.optim.SGD', lr=0.05, momentum=0.9, weight_decay=5e-4)
schedule = dict(type='CosineAnnealingLR', by_epoch=False)
length = 4
val_interval = 4
channels_last = True
threads = 1
