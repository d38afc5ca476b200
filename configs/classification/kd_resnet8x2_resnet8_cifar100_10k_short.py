# ResNet-8 taught by one of twice the width on 10,000 images of CIFAR-100: KD (arXiv 1503.02531).
# Run:     python tools/train.py configs/classification/kd_resnet8x2_resnet8_cifar100_10k_short.py
# Expect:  alone 18.4 ± 0.5 %, taught 22.1 ± 0.3 % over 5 seeds, teacher 28.9 %; its training takes
#          62 s of one CPU core
_base_ = ['../_base_/cifar100_10k_short.py']

teacher = dict(type='kdtasks.classification.models.resnet8', width=32, num_classes=100)
teacher_training = dict(length=16)

losses = dict(
    # the control trains it with weight 1 (key `alone`)
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target'), weight=0.1),
    loss_kd=dict(
        type='kdtasks.general.KDLoss', temperature=4.0, of=('student', 'teacher'), weight=0.9
    ),
)
