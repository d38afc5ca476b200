# A RetinaNet for blood cells taught by one 14 times as large: PKD (arXiv 2207.02039) on all levels
# of the pyramid; two CPU cores.
# Run:     python tools/train.py configs/detection/pkd_retinanet_bccd_small.py
# Expect:  mAP alone 36.7 and 34.4, taught 37.1 and 40.1 with seeds 0 and 1; its five have not been
#          run
#
# 10 a level is the released weight for RetinaNet. The student has 16 channels and the teacher 48, so
# a 1x1 convolution stands between; in the release both have 256, and none.
_base_ = ['../_base_/bccd.py', '../_base_/retinanet_small.py', '../_base_/adamw_20e.py']
losses = {
    f'loss_pkd_{level}': dict(
        type='kdtasks.detection.PKDLoss',
        of=(f'features.student.{level}', f'features.teacher.{level}'),
        weight=10.0,
    )
    for level in (1, 2, 3)
}
