# CIFAR-100, ten new classes at a time, 2,000 exemplars, an unlabelled pool: Global Distillation
# (arXiv 1903.12648).
# Run:     python tools/train.py configs/incremental/gd_wrn_16_2_cifar100_10x10.py
# Expect:  not run here to its end: it wants a GPU. Its pool was TinyImages, withdrawn since; colour
#          jitter is left out here
_base_ = ['../_base_/cifar100_10x10.py']
task = 'kdtasks.incremental.trainer'

student = dict(
    type='kdtasks.incremental.models.growing',
    sizes=(10,) * 10,
    network=dict(type='kdtasks.classification.models.wrn_16_2', dropout=0.3),
)
distiller = dict(type='kdtasks.incremental.IncrementalDistiller')
data = dict(
    train=dict(
        memory=2000,
        pool=dict(
            type='kdtasks.classification.data.unlabelled_folder',
            root='wild',
            like=dict(type='kdtasks.classification.data.cifar100'),
        ),
    ),
    # there 128 of both, as they come
    batch_size=64,
    unlabelled_per_batch=64,
)

# of "joint"
losses = dict(loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')))
optimizer = dict(type='torch.optim.SGD', lr=0.1, momentum=0.9, weight_decay=5e-4)
length = 180
schedule = dict(type='MultiStepLR', milestones=[120, 160, 170], gamma=0.1)
_200 = dict(length=200, schedule=dict(type='MultiStepLR', milestones=[120, 160, 180], gamma=0.1))
stages = dict(
    type='kdtasks.incremental.stages.global_distillation',
    current=_200,
    first=_200,
    finetune=dict(
        length=20,
        optimizer=dict(lr=0.01),
        schedule=dict(type='MultiStepLR', milestones=[10, 15], gamma=0.1),
    ),
)
val_interval = 200
checkpoint_interval = 20
