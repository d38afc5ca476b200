# ResNet-8 taught by one of twice the width on 10,000 images of CIFAR-100: RKD beside the labels
# (arXiv 1904.05068).
# Run:     python tools/train.py configs/classification/rkd_resnet8x2_resnet8_cifar100_10k_short.py
# Expect:  alone 18.4 ± 0.5 %, taught 24.5 ± 0.4 % over 5 seeds, teacher 28.9 %; its training takes
#          72 s of one CPU core
_base_ = ['../_base_/cifar100_10k_short.py']

teacher = dict(type='kdtasks.classification.models.resnet8', width=32, num_classes=100)
teacher_training = dict(length=16)

losses = dict(
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')),
    # the weights for classification
    loss_rkd=dict(
        type='kdtasks.general.RKDLoss',
        distance_weight=25.0,
        angle_weight=50.0,
        of=('student.flatten', 'teacher.flatten'),
    ),
)
