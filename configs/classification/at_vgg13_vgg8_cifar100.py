# VGG-8 taught by VGG-13 on CIFAR-100: attention transfer (arXiv 1612.03928), at full length for a
# GPU.
# Run:     python tools/train.py configs/classification/at_vgg13_vgg8_cifar100.py
# Expect:  not measured here yet at full length. RepDistiller's README reports 71.43 % taught,
#          70.36 % alone
_base_ = ['../_base_/vgg13_vgg8_cifar100.py', '../_base_/at.py']

# four stages there: behind each pooling and the last one, but the first
losses = dict(
    loss_at1=dict(of=('student.layer2', 'teacher.layer2')),
    loss_at2=dict(of=('student.layer3', 'teacher.layer3')),
    loss_at3=dict(of=('student.layer4', 'teacher.layer4')),
    loss_at4=dict(
        type='kdtasks.general.attention_transfer_loss',
        of=('student.layer5', 'teacher.layer5'),
        weight=1000.0,
    ),
)
