# A RetinaNet for blood cells, 20 photos labelled and 185 not: semi-supervised ADL (arXiv 1901.00366); for two CPU cores.
# Run:     python tools/train.py configs/detection/adl_retinanet_bccd_20_labels_small.py
# Expect:  to be measured
_base_ = ['../_base_/bccd_20_labels.py', '../_base_/retinanet_small.py', '../_base_/adl.py', '../_base_/adamw_20e.py']
