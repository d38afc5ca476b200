# Semi-supervised ADL (arXiv 1901.00366), the teacher's detections also for boxes; BCCD, 20 labels;
# for two CPU cores.
# Run:     python tools/train.py configs/detection/adl_retinanet_bccd_20_labels_pseudo_small.py
# Expect:  mAP alone 13.3 ± 2.5, taught 24.0 ± 0.9 over 5 seeds, teacher 23.7; five minutes on one
#          CPU core
_base_ = ['adl_retinanet_bccd_20_labels_small.py']
distiller = dict(unlabelled='soft+pseudo', pseudo_score=0.5)
