# Ten new classes at a time, without the old images: LwF in its class-incremental form (arXiv 1606.09282), and joint training.
# Run:     python tools/train.py configs/incremental/lwf_resnet8_cifar100_5x10_short.py
# Expect:  not measured yet
_base_ = ['../_base_/cifar100_5x10.py', '../_base_/resnet8_4e.py']

distiller = dict(type='kdtasks.incremental.LwMDistiller', attention='layer3')       # as beside it, so they share their control
losses = dict(
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student.new', 'target.new')),
    loss_lwf=dict(type='kdtasks.incremental.lwf_loss', temperature=2.0, of=('student.old', 'teacher')),
)
stages = dict(type='kdtasks.incremental.stages.chain')
