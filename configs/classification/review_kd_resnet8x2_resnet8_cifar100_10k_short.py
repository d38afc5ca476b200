# ResNet-8 taught by one of twice the width on 10,000 images of CIFAR-100: knowledge review (arXiv
# 2104.09044).
# Run:     python tools/train.py configs/classification/review_kd_resnet8x2_resnet8_cifar100_10k_short.py
# Expect:  alone 18.4 ± 0.5 %, taught 24.3 ± 0.2 % over 5 seeds, teacher 28.9 %; its training takes
#          177 s of one CPU core
_base_ = ['kd_resnet8x2_resnet8_cifar100_10k_short.py']

# weight as released for ResNet-110 to -32, the nearest pair; warm-up 20 of 240 epochs
losses = dict(
    _delete_=True,
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')),
    loss_review=dict(
        type='kdtasks.general.ReviewKDLoss',
        of=(
            *('student.layer1', 'student.layer2', 'student.layer3', 'student.flatten'),
            *('teacher.layer1.0.add', 'teacher.layer2.0.add', 'teacher.layer3.0.add'),
            'teacher.flatten',
        ),
        weight=dict(type='kdtasks.core.Linear', start=0.0, end=1.0, until=1 / 12),
    ),
)
