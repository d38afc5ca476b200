# A RetinaNet for blood cells, 20 photos labelled and 185 not, taught by one 14 times as large on all
# levels of the pyramid: PKD (arXiv 2207.02039); for two CPU cores.
# Run:     python tools/train.py configs/detection/pkd_retinanet_bccd_20_labels_small.py
# Expect:  mAP alone 13.3 ± 2.0, taught 20.3 ± 0.9 over 5 seeds, teacher 23.6
_base_ = [
    '../_base_/bccd_20_labels.py',
    '../_base_/retinanet_small.py',
    '../_base_/pkd_pyramid.py',
    '../_base_/adamw_20e.py',
]
