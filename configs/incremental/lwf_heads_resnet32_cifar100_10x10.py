# CIFAR-100, ten new classes at a time, without the old images: LwF as published (arXiv 1606.09282),
# a head an experience.
# Run:     python tools/train.py configs/incremental/lwf_heads_resnet32_cifar100_10x10.py
# Expect:  not run here to its end: it wants a GPU
_base_ = ['./lwf_resnet32_cifar100_10x10.py']

losses = dict(
    loss_lwf=dict(
        _delete_=True,
        type='kdtasks.incremental.LwFLoss',
        temperature=2.0,
        of=('student.old_heads', 'teacher.heads'),
    )
)
stages = dict(
    warm_up=dict(  # a new head learns by itself first; 20 epochs are ours
        length=20, optimizer=dict(lr=0.1), schedule=dict(type='ConstantLR', factor=1.0)
    )
)
