# A very small network that learns a ResNet-8's signs, then is taught to classify handwritten
# digits: AB (arXiv 1811.03233). No download.
# Run:     python tools/train.py configs/classification/ab_digits.py
# Expect:  student alone 59.4 ± 3.2 %, taught 95.8 ± 1.1 % over 5 seeds (plain KD 95.9 ± 1.3),
#          teacher 98.0 %; half a minute on a CPU core
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

# The weight of the signs is 0.003 as released (the default), for a sum over maps 1/32 as large: a
# weaker pull here.
# 16 epochs of signs and 24 of KD: the 40 that plain KD has
stages = dict(
    type='kdtasks.general.ab.stages',
    student=['layer2.bn1', 'layer3.bn1'],  # 8x8 and 4x4, as the teacher's
    teacher=['layer1.0.add', 'layer2.0.add'],
    first=dict(length=16),
)
length = 24
teacher_training = dict(length=40)
