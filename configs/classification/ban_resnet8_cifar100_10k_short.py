# Three generations of a ResNet-8 on 10,000 images of CIFAR-100, each taught by the one before:
# BAN+L (arXiv 1805.04770).
# Run:     python tools/train.py configs/classification/ban_resnet8_cifar100_10k_short.py
# Expect:  alone 18.4 ± 0.5 %, taught 21.2 ± 0.3 % over 5 seeds, the first generation 18.8 %; its
#          training takes 166 s of one CPU core
_base_ = ['../_base_/cifar100_10k_short.py']

teacher = dict(type='kdtasks.classification.models.resnet8', num_classes=100)
models = dict(
    generation1=dict(type='kdtasks.classification.models.resnet8', num_classes=100),
    generation2=dict(type='kdtasks.classification.models.resnet8', num_classes=100),
    second=dict(type='kdtasks.classification.models.resnet8', num_classes=100),
)

losses = dict(
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')),
    loss_ban=dict(type='kdtasks.general.KDLoss', temperature=1.0, of=('student', 'teacher')),
)
# "second" learns from the labels alone, as "alone" does, from other weights
stages = dict(
    type='kdtasks.general.ban.stages',
    generations=['generation1', 'generation2'],
    seed_noise='second',
)
