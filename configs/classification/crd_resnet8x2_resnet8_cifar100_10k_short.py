# ResNet-8 taught by one of twice the width on 10,000 images of CIFAR-100: CRD (arXiv 1910.10699).
# Run:     python tools/train.py configs/classification/crd_resnet8x2_resnet8_cifar100_10k_short.py
# Expect:  alone 18.4 ± 0.5 %, taught 20.1 ± 0.4 % over 5 seeds, teacher 28.9 %; its training takes
#          105 s of one CPU core
_base_ = ['kd_resnet8x2_resnet8_cifar100_10k_short.py']

# weight as released; all 10,000 images are fewer than the released 16,384 negatives
losses = dict(
    _delete_=True,
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')),
    loss_crd=dict(
        type='kdtasks.general.CRDLoss',
        samples=10_000,
        of=('student.flatten', 'teacher.flatten', 'index', 'target'),
        weight=0.8,
    ),
)
