# Ten new classes at a time, 1,000 exemplars, 10,000 unlabelled images of others: Global
# Distillation (arXiv 1903.12648).
# Run:     python tools/train.py configs/incremental/gd_resnet8_cifar100_5x10_short.py
# Expect:  5 seeds, class-IL: fine-tuning 25.8 ± 2.1 %, taught 27.4 ± 0.9; task-IL: 55.8 ± 1.2, 58.1
#          ± 1.5; joint 34.1, 60.3
_base_ = ['../_base_/cifar100_5x10.py', '../_base_/resnet8_4e.py']

_pool = dict(
    type='kdtasks.classification.data.unlabelled_folder', root='wild', like={{_base_._train}}
)
data = dict(train=dict(memory=1000, pool=_pool), unlabelled_per_batch=32)

distiller = dict(type='kdtasks.incremental.IncrementalDistiller')
# not used: see stages
losses = dict(loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')))
stages = dict(
    type='kdtasks.incremental.stages.global_distillation',
    joint=False,
    finetune=dict(length=1, optimizer=dict(lr=0.005)),
)
