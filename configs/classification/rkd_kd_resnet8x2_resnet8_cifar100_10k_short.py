# ResNet-8 taught by one of twice the width on 10,000 images of CIFAR-100: RKD beside KD (arXiv
# 1904.05068).
# Run:     python tools/train.py configs/classification/rkd_kd_resnet8x2_resnet8_cifar100_10k_short.py
# Expect:  alone 18.4 ± 0.5 %, taught 23.9 ± 0.3 % over 5 seeds, teacher 28.9 %; its training takes
#          71 s of one CPU core
_base_ = ['kd_resnet8x2_resnet8_cifar100_10k_short.py']

# the weights for classification
losses = dict(
    loss_rkd=dict(
        type='kdtasks.general.RKDLoss',
        distance_weight=25.0,
        angle_weight=50.0,
        of=('student.flatten', 'teacher.flatten'),
    )
)
