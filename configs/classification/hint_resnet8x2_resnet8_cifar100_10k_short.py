# ResNet-8 taught by one of twice the width on 10,000 images of CIFAR-100: a hint in the middle
# (arXiv 1412.6550).
# Run:     python tools/train.py configs/classification/hint_resnet8x2_resnet8_cifar100_10k_short.py
# Expect:  alone 18.4 ± 0.5 %, taught 23.6 ± 0.3 % over 5 seeds, teacher 28.9 %; its training takes
#          69 s of one CPU core
_base_ = ['kd_resnet8x2_resnet8_cifar100_10k_short.py']

# weight and layer as in RepDistiller, whose table trains the hint together with the labels
losses = dict(
    _delete_=True,
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')),
    loss_hint=dict(
        type='kdtasks.general.FeatureLoss', of=('student.layer2', 'teacher.layer2'), weight=100.0
    ),
)
