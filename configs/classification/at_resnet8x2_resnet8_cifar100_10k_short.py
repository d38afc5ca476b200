# ResNet-8 taught by one of twice the width on 10,000 images of CIFAR-100: attention transfer (arXiv
# 1612.03928).
# Run:     python tools/train.py configs/classification/at_resnet8x2_resnet8_cifar100_10k_short.py
# Expect:  alone 18.4 ± 0.5 %, taught 19.8 ± 0.5 % over 5 seeds, teacher 28.9 %; its training takes
#          69 s of one CPU core
_base_ = ['kd_resnet8x2_resnet8_cifar100_10k_short.py']

# three layers at the released weight
losses = dict(
    _delete_=True,
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')),
    **{
        f'loss_at{k}': dict(
            type='kdtasks.general.attention_transfer_loss',
            of=(f'student.layer{k}', f'teacher.layer{k}'),
            weight=1000.0,
        )
        for k in (1, 2, 3)
    },
)
