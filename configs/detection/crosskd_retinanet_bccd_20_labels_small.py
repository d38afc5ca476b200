# A RetinaNet for blood cells, 20 photos labelled and 185 not, taught through the teacher's head:
# CrossKD (arXiv 2306.11369); for two CPU cores.
# Run:     python tools/train.py configs/detection/crosskd_retinanet_bccd_20_labels_small.py
# Expect:  not measured yet
#
# The teacher's head goes on from the student's maps, which so have its 48 channels: a student of
# 0.32 M parameters, with a control of its own. Anchors of the unlabelled photos count in the sum and
# not in the number of matched anchors that divides it.
_base_ = [
    '../_base_/bccd_20_labels.py',
    '../_base_/retinanet_small.py',
    '../_base_/crosskd.py',
    '../_base_/adamw_20e.py',
]
student = dict(channels=48)
distiller = dict(cross_after=3)
