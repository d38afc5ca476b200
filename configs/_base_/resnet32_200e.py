# ResNet-32 with a growing head, 200 epochs an experience, batches of 128, as FACIL's survey has
# them (arXiv 2010.15277, its code). The learning rate and its fall as a cosine are ours.
task = 'kdtasks.incremental.trainer'

student = dict(
    type='kdtasks.incremental.models.growing',
    sizes=(10,) * 10,
    network=dict(type='kdtasks.classification.models.resnet32'),
)
distiller = dict(type='kdtasks.incremental.LwMDistiller', attention='layer3')

optimizer = dict(type='torch.optim.SGD', lr=0.1, momentum=0.9, weight_decay=5e-4)
schedule = dict(type='CosineAnnealingLR', by_epoch=False)
length = 200
val_interval = 50
checkpoint_interval = 20
