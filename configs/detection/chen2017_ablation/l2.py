# Of Chen et al. (NIPS 2017; no arXiv id) the squared regression, not bounded only, on
# chen2017_faster_rcnn_bccd_small.py.
# Run:     python tools/train.py configs/detection/chen2017_ablation/l2.py
# Expect:  mAP alone 43.9 ± 1.6, taught 45.0 ± 1.5 over 5 seeds; five minutes on one CPU core
# (margin 1e9: the gate is always open, so the teacher decides nothing)
_base_ = ['../../_base_/bccd.py', '../../_base_/faster_rcnn_small.py', '../../_base_/adamw_20e.py']
losses = dict(
    # named, so that all arms share one control
    loss_rpn_hard=dict(of='student.loss_objectness', weight=1.0),
    loss_rois_hard=dict(of='student.loss_classifier', weight=1.0),
    loss_rpn_bounded=dict(
        type='kdtasks.detection.BoundedRegressionLoss',
        margin=1e9,
        of=('rpn.student.deltas', 'rpn.teacher.deltas', 'rpn.target', 'rpn.count'),
        weight=0.5,
    ),
    loss_rois_bounded=dict(
        type='kdtasks.detection.BoundedRegressionLoss',
        margin=1e9,
        of=('rois.student.deltas', 'rois.teacher.deltas', 'rois.target', 'rois.count'),
        weight=0.5,
    ),
)
