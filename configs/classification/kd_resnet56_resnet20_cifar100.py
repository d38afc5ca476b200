# ResNet-20 taught by ResNet-56 on CIFAR-100: KD (arXiv 1503.02531), at full length for a GPU.
# Run:     python tools/train.py configs/classification/kd_resnet56_resnet20_cifar100.py
# Expect:  not measured here yet at full length. RepDistiller's README reports 69.06 % alone, 70.66
#          % taught, teacher 72.34 %
_base_ = ['../_base_/cifar100.py', '../_base_/sgd_240e.py']
task = 'kdtasks.classification.trainer'

student = dict(type='kdtasks.classification.models.resnet20', num_classes=100)
teacher = dict(type='kdtasks.classification.models.resnet56', num_classes=100)

losses = dict(
    # the control trains it with weight 1 (key `alone`)
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target'), weight=0.1),
    loss_kd=dict(
        type='kdtasks.general.KDLoss', temperature=4.0, of=('student', 'teacher'), weight=0.9
    ),
)
