# The same from a backbone that has learned from 2,500 photos of anything, and from no blood smear,
# as representation/feature_lite0_small_resnet_wild.py does: ADL (arXiv 1901.00366).
# Run:     python tools/train.py configs/detection/adl_retinanet_bccd_20_labels_small_wild_backbone.py
# Expect:  mAP alone 23.8 ± 0.7, taught 24.6 ± 0.4 over 5 seeds, teacher 23.6; alone from random weights
#          13.3 ± 2.0
_base_ = ['adl_retinanet_bccd_20_labels_small.py']
student = dict(
    checkpoint='work_dirs/representation_feature_lite0_small_resnet_wild/seed0/student.pth'
)
