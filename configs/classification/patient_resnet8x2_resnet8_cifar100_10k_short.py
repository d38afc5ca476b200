# ResNet-8 taught by one of twice the width on mixed images of CIFAR-100 (10,000 of them): patient
# and consistent teaching (arXiv 2106.05237), here with little patience.
# Run:     python tools/train.py configs/classification/patient_resnet8x2_resnet8_cifar100_10k_short.py
# Expect:  alone 14.5 ± 0.3 %, taught 16.8 ± 0.3 % over 5 seeds, teacher 23.1 %; its training takes
#          64 s of one CPU core
_base_ = ['kd_resnet8x2_resnet8_cifar100_10k_short.py']

# the control and the teacher learn from mixed labels; who is taught has no labels, as in the paper
distiller = dict(type='kdtasks.general.MixupDistiller')
losses = dict(
    _delete_=True,
    loss_cls=dict(
        type='kdtasks.general.mixed_cross_entropy',
        of=('student', 'target', 'target.other', 'input.share'),
        weight=0,  # alone: 1
    ),
    loss_kd=dict(type='kdtasks.general.KDLoss', temperature=1.0, of=('student', 'teacher')),
)
