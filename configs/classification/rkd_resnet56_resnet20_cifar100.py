# ResNet-20 taught by ResNet-56 on CIFAR-100, at full length for a GPU: RKD beside the labels (arXiv
# 1904.05068).
# Run:     python tools/train.py configs/classification/rkd_resnet56_resnet20_cifar100.py
# Expect:  not measured here at full length: it needs a GPU.
_base_ = ['kd_resnet56_resnet20_cifar100.py']

# without KD, as RepDistiller runs it
losses = dict(
    _delete_=True,
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')),
    loss_rkd=dict(
        type='kdtasks.general.RKDLoss',
        distance_weight=25.0,
        angle_weight=50.0,
        of=('student.flatten', 'teacher.flatten'),
    ),
)
