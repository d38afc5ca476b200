# ResNet-8 taught by one of twice the width on 10,000 images of CIFAR-100: similarity preserving
# (arXiv 1907.09682).
# Run:     python tools/train.py configs/classification/sp_resnet8x2_resnet8_cifar100_10k_short.py
# Expect:  alone 18.4 ± 0.5 %, taught 24.9 ± 0.3 % over 5 seeds, teacher 28.9 %; its training takes
#          65 s of one CPU core
_base_ = ['kd_resnet8x2_resnet8_cifar100_10k_short.py']

# twice the released weight, which is for batches of 64: the value falls as 1/B
losses = dict(
    _delete_=True,
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')),
    loss_sp=dict(
        type='kdtasks.general.similarity_preserving_loss',
        of=('student.layer3', 'teacher.layer3'),
        weight=6000.0,
    ),
)
