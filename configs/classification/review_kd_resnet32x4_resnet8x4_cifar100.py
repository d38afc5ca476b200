# ResNet-8x4 taught by ResNet-32x4 on CIFAR-100: knowledge review (arXiv 2104.09044), at full
# length for a GPU.
# Run:     python tools/train.py configs/classification/review_kd_resnet32x4_resnet8x4_cifar100.py
# Expect:  not measured here yet at full length; no published figure was read
_base_ = ['../_base_/resnet32x4_resnet8x4_cifar100.py']

# weight as released for this pair; warm-up 20 of 240 epochs
losses = dict(
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')),
    loss_review=dict(
        type='kdtasks.general.ReviewKDLoss',
        of=(
            *('student.layer1', 'student.layer2', 'student.layer3', 'student.flatten'),
            *(f'teacher.layer{k}.4.add' for k in (1, 2, 3)),
            'teacher.flatten',
        ),
        weight=dict(type='kdtasks.core.Linear', start=0.0, end=5.0, until=1 / 12),
    ),
)
