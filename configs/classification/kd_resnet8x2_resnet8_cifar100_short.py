# ResNet-8 taught by a ResNet-8 of twice the width on CIFAR-100, short enough for two CPU cores: KD
# (arXiv 1503.02531).
# Run:     python tools/train.py configs/classification/kd_resnet8x2_resnet8_cifar100_short.py
# Expect:  student alone 38.4 ± 0.5 %, taught 44.1 ± 0.3 % over 5 seeds, teacher 52.0 %; 9 minutes
#          on two CPU cores
_base_ = ['../_base_/cifar100.py']
task = 'kdtasks.classification.trainer'

student = dict(type='kdtasks.classification.models.resnet8', num_classes=100)
teacher = dict(type='kdtasks.classification.models.resnet8', width=32, num_classes=100)

losses = dict(
    # the control trains it with weight 1 (key `alone`)
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target'), weight=0.1),
    loss_kd=dict(
        type='kdtasks.general.KDLoss', temperature=4.0, of=('student', 'teacher'), weight=0.9
    ),
)

data = dict(batch_size=128)
optimizer = dict(type='torch.optim.SGD', lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
schedule = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=200),
    dict(type='CosineAnnealingLR', begin=200, by_epoch=False),
]
length = 6
teacher_training = dict(length=8)
# README.md's figures are of 'bfloat16', which takes ten times as long where a processor lacks it
amp = None
channels_last = True
val_interval = 2
