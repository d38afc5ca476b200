# A very small network taught by a ResNet-8 on handwritten digits: RKD beside KD (arXiv 1904.05068).
# No download.
# Run:     python tools/train.py configs/classification/rkd_kd_digits.py
# Expect:  student alone 57.3 ± 2.9 %, taught 97.0 ± 0.4 % over 3 seeds (plain KD 96.9 ± 0.5),
#          teacher 98.3 %; a minute on a CPU core
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
