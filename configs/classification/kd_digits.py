# A very small network taught by a ResNet-8 on handwritten digits, five labels a class: KD (arXiv
# 1503.02531). No download.
# Run:     python tools/train.py configs/classification/kd_digits.py
# Expect:  student alone 58.1 ± 3.5 %, taught 95.9 ± 1.3 % over 5 seeds, teacher 98.0 %; half a
#          minute on a CPU core
_base_ = ['../_base_/digits_small_student.py']

teacher = dict(
    type='kdtasks.classification.models.resnet8', width=16, in_channels=1, num_classes=10
)

losses = dict(
    # the control trains it with weight 1 (key `alone`)
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target'), weight=0.1),
    loss_kd=dict(
        type='kdtasks.general.KDLoss', temperature=4.0, of=('student', 'teacher'), weight=0.9
    ),
)
