# A very small network that keeps the distances and angles between a ResNet-8's features of
# handwritten digits: RKD beside the labels (arXiv 1904.05068). No download.
# Run:     python tools/train.py configs/classification/rkd_digits.py
# Expect:  student alone 58.1 ± 3.5 %, taught 90.4 ± 1.3 % over 5 seeds (plain KD 95.9 ± 1.3),
#          teacher 98.0 %; a minute on a CPU core
_base_ = ['../_base_/digits_small_student.py']

teacher = dict(
    type='kdtasks.classification.models.resnet8', width=16, in_channels=1, num_classes=10
)

losses = dict(
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')),
    # the weights for classification; of all images, as relations need no labels. The pooled
    # features before the head (8 and 64 of them), without KD: as RepDistiller runs it
    loss_rkd=dict(
        type='kdtasks.general.RKDLoss',
        distance_weight=25.0,
        angle_weight=50.0,
        of=('student.flatten', 'teacher.flatten'),
    ),
)
