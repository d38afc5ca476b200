# A Faster R-CNN for blood cells taught by one of 14 times its size: Chen et al. (NIPS 2017; no arXiv id); for two CPU cores.
# Run:     python tools/train.py configs/detection/chen2017_faster_rcnn_bccd_small.py
# Expect:  to be measured
_base_ = ['../_base_/bccd.py', '../_base_/faster_rcnn_small.py', '../_base_/chen2017.py', '../_base_/adamw_20e.py']
