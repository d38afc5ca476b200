# A very small network taught by a ResNet-8's checkpoints, one after the other, on handwritten
# digits: RCO (arXiv 1904.09149). No download.
# Run:     python tools/train.py configs/classification/rco_digits.py
# Expect:  student alone 58.1 ± 3.5 %, taught 96.3 ± 0.9 % over 5 seeds (plain KD 95.9 ± 1.3),
#          teacher 98.0 %; a minute on a CPU core
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

# in one schedule, 10 epochs of the student each: 2, 7, 20 and the last of the teacher's 40 epochs,
# in proportion to 10, 40, 120 and 240 of 240, as quoted from the paper
stages = dict(type='kdtasks.general.rco.stages', epochs=[2, 7, 20])
