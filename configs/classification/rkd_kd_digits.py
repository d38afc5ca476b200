# A very small network taught by a ResNet-8 on handwritten digits: RKD beside KD (arXiv 1904.05068).
# No download.
# Run:     python tools/train.py configs/classification/rkd_kd_digits.py
# Expect:  student alone 58.1 ± 3.5 %, taught 95.7 ± 0.8 % over 5 seeds (plain KD 95.9 ± 1.3),
#          teacher 98.0 %; a minute on a CPU core
_base_ = ['kd_digits.py']

# the weights for classification
losses = dict(
    loss_rkd=dict(
        type='kdtasks.general.RKDLoss',
        distance_weight=25.0,
        angle_weight=50.0,
        of=('student.flatten', 'teacher.flatten'),
    )
)
