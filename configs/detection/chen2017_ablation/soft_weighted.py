# Of Chen et al. (NIPS 2017; no arXiv id) the class-weighted soft cross-entropy only, on
# chen2017_faster_rcnn_bccd_small.py.
# Run:     python tools/train.py configs/detection/chen2017_ablation/soft_weighted.py
# Expect:  mAP alone 43.9 ± 1.6, taught 44.1 ± 1.7 over 5 seeds; five minutes on one CPU core
_base_ = ['../../_base_/bccd.py', '../../_base_/faster_rcnn_small.py', '../../_base_/adamw_20e.py']
losses = dict(
    loss_rpn_hard=dict(of='student.loss_objectness', weight=0.5),
    loss_rpn_soft=dict(
        type='kdtasks.detection.WeightedSoftCrossEntropyLoss',
        background_weight=1.5,
        of=('rpn.student.logits', 'rpn.teacher.logits'),
        weight=0.5,
    ),
    loss_rois_hard=dict(of='student.loss_classifier', weight=0.5),
    loss_rois_soft=dict(
        type='kdtasks.detection.WeightedSoftCrossEntropyLoss',
        background_weight=1.5,
        of=('rois.student.logits', 'rois.teacher.logits'),
        weight=0.5,
    ),
)
