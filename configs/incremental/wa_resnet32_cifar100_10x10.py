# CIFAR-100, ten new classes at a time, 2,000 exemplars: WA (arXiv 1911.07053), with the schedule of
# PyCIL's code.
# Run:     python tools/train.py configs/incremental/wa_resnet32_cifar100_10x10.py
# Expect:  not run here to its end: it wants a GPU. PyCIL, after the last experience: 52, read off
#          its plot
_base_ = ['./lwf_resnet32_cifar100_10x10.py']

data = dict(train=dict(memory=2000, exemplars='herding'))
distiller = dict(_delete_=True, type='kdtasks.incremental.IncrementalDistiller')
losses = dict(loss_cls=dict(of=('student', 'target')))
stages = dict(
    balance=True,
    finish='kdtasks.incremental.finish.align_weights',
    first=dict(
        optimizer=dict(weight_decay=5e-4),
        schedule=dict(type='MultiStepLR', milestones=[60, 120, 170], gamma=0.1),
        length=200,
    ),
)
optimizer = dict(weight_decay=2e-4)
schedule = dict(_delete_=True, type='MultiStepLR', milestones=[60, 100, 140], gamma=0.1)
length = 170
val_interval = 170
