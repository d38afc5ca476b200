# Ten new classes at a time, 1,000 exemplars: WA (arXiv 1911.07053), new weights aligned after each
# experience, against replay of as many.
# Run:     python tools/train.py configs/incremental/wa_resnet8_cifar100_5x10_short.py
# Expect:  not run here to its end: ten minutes on one CPU core
_base_ = ['../_base_/cifar100_5x10.py', '../_base_/resnet8_4e.py']

data = dict(train=dict(memory=1000, exemplars='herding'))

distiller = dict(type='kdtasks.incremental.IncrementalDistiller')
losses = dict(
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')),
    loss_lwf=dict(
        type='kdtasks.incremental.lwf_loss', temperature=2.0, of=('student.old', 'teacher')
    ),
)
stages = dict(
    type='kdtasks.incremental.stages.class_incremental_stages',
    joint=False,
    balance=True,
    finish='kdtasks.incremental.finish.align_weights',
)
