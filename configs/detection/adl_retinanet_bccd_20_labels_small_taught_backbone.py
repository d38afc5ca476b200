# The same from a backbone that has learned from the 205 photos without labels first, as
# representation/feature_lite0_small_resnet_bccd.py does: ADL (arXiv 1901.00366).
# Run:     python tools/train.py configs/detection/adl_retinanet_bccd_20_labels_small_taught_backbone.py
# Expect:  mAP alone 27.1 ± 1.0, taught 24.4 ± 1.2 over 5 seeds, teacher 23.6; alone from random weights
#          13.3 ± 2.0
_base_ = ['adl_retinanet_bccd_20_labels_small.py']
student = dict(
    checkpoint='work_dirs/representation_feature_lite0_small_resnet_bccd/seed0/student.pth'
)
