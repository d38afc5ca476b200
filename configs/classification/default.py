# A small network taught by a larger one on handwritten digits, with five labels a class: KD (arXiv
# 1503.02531). No download.
# Run:     python tools/train.py configs/classification/default.py
# Expect:  student alone 80.9 ± 2.2 %, taught 98.1 ± 0.2 % over 5 seeds, teacher 98.3 %; half a
#          minute on two CPU cores
_base_ = ['../_base_/digits.py']
task = 'kdtasks.classification.trainer'

student = dict(type='kdtasks.classification.models.digits_cnn', width=16, num_classes=10)
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

optimizer = dict(type='torch.optim.SGD', lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
schedule = dict(type='CosineAnnealingLR')
length = 40  # epochs of 20 steps
# the images are not augmented, so the teacher speaks once about each
cache = dict(views=1)
val_interval = 4
log_interval = 20
threads = 1  # such small layers run faster on one
