# ResNet-8 taught by one of twice the width on 10,000 images of CIFAR-100: DKD (arXiv 2203.08679).
# Run:     python tools/train.py configs/classification/dkd_resnet8x2_resnet8_cifar100_10k_short.py
# Expect:  alone 18.4 ± 0.5 %, taught 25.9 ± 0.3 % over 5 seeds, teacher 28.9 %; its training takes
#          64 s of one CPU core
_base_ = ['kd_resnet8x2_resnet8_cifar100_10k_short.py']

# beta as released for the pair of the same family that is nearest in size; the released warm-up is
# 20 of 240 epochs
losses = dict(
    _delete_=True,
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')),
    loss_dkd=dict(
        type='kdtasks.general.DKDLoss',
        temperature=4.0,
        alpha=1.0,
        beta=2.0,
        of=('student', 'teacher', 'target'),
        weight=dict(type='kdtasks.core.Linear', start=0.0, end=1.0, until=1 / 12),
    ),
)
