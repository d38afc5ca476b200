# gd_resnet8_cifar100_5x10_short.py (arXiv 1903.12648) without unlabelled images: P and C teach on
# the labelled ones.
# Run:     python tools/train.py configs/incremental/gd_no_pool_resnet8_cifar100_5x10_short.py
# Expect:  5 seeds, class-IL: fine-tuning 25.8 ± 2.1 %, taught 26.2 ± 1.7; task-IL: 55.8 ± 1.2, 59.0
#          ± 1.5; joint 34.1, 60.3
_base_ = ['../_base_/cifar100_5x10.py', '../_base_/resnet8_4e.py']

data = dict(train=dict(memory=1000))

distiller = dict(type='kdtasks.incremental.IncrementalDistiller')
# not used: see stages
losses = dict(loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')))
stages = dict(
    type='kdtasks.incremental.stages.global_distillation',
    joint=False,
    terms='PC',
    finetune=dict(length=1, optimizer=dict(lr=0.005)),
)
