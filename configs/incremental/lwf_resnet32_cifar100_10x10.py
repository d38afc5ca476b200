# CIFAR-100, ten new classes at a time, without the old images: LwF in its class-incremental form
# (arXiv 1606.09282).
# Run:     python tools/train.py configs/incremental/lwf_resnet32_cifar100_10x10.py
# Expect:  not run here to its end: it wants a GPU
_base_ = ['../_base_/cifar100_10x10.py', '../_base_/resnet32_200e.py']

losses = dict(
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student.new', 'target.new')),
    loss_lwf=dict(
        type='kdtasks.incremental.lwf_loss', temperature=2.0, of=('student.old', 'teacher')
    ),
)
stages = dict(type='kdtasks.incremental.stages.class_incremental_stages')
