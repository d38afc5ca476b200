# Semi-supervised ADL (arXiv 1901.00366), the teacher's detections also for boxes; BCCD, 20 labels; for two CPU cores.
# Run:     python tools/train.py configs/detection/adl_retinanet_bccd_20_labels_pseudo_small.py
# Expect:  to be measured
_base_ = ['adl_retinanet_bccd_20_labels_small.py']
distiller = dict(unlabelled='soft+pseudo', pseudo_score=0.5)
