# ResNet-8 taught by one of twice the width on 10,000 images of CIFAR-100: SRD beside KD (arXiv
# 2303.11098).
# Run:     python tools/train.py configs/classification/srd_resnet8x2_resnet8_cifar100_10k_short.py
# Expect:  alone 18.4 ± 0.5 %, taught 27.1 ± 0.3 % over 5 seeds, teacher 28.9 %; its training takes
#          65 s of one CPU core
_base_ = ['kd_resnet8x2_resnet8_cifar100_10k_short.py']

# weights and temperature as released for ImageNet
losses = dict(
    _delete_=True,
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')),
    loss_kd=dict(type='kdtasks.general.KDLoss', temperature=1.0, of=('student', 'teacher')),
    loss_srd=dict(
        type='kdtasks.general.SRDLoss', of=('student.flatten', 'teacher.flatten'), weight=2.0
    ),
)
