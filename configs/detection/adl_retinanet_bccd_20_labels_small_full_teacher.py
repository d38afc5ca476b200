# Semi-supervised ADL (arXiv 1901.00366), the student with 20 labelled photos, its teacher with all 205; for two CPU cores.
# Run:     python tools/train.py configs/detection/adl_retinanet_bccd_20_labels_small_full_teacher.py
# Expect:  to be measured
_base_ = ['adl_retinanet_bccd_20_labels_small.py']
teacher_training = dict(data=dict(
    train=dict(type='kdtasks.detection.data.bccd', train=True, size=(180, 240)), iterations_per_epoch=None))
