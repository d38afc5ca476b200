# Of Chen et al. (NIPS 2017; no arXiv id) the teacher-bounded regression only, on
# chen2017_faster_rcnn_bccd_small.py.
# Run:     python tools/train.py configs/detection/chen2017_ablation/bounded.py
# Expect:  mAP alone 43.9 ± 1.6, taught 45.2 ± 1.4 over 5 seeds; five minutes on one CPU core
_base_ = ['../../_base_/bccd.py', '../../_base_/faster_rcnn_small.py', '../../_base_/adamw_20e.py']
losses = dict(
    # named, so that all arms share one control
    loss_rpn_hard=dict(of='student.loss_objectness', weight=1.0),
    loss_rois_hard=dict(of='student.loss_classifier', weight=1.0),
    loss_rpn_bounded=dict(
        type='kdtasks.detection.BoundedRegressionLoss',
        margin=0.0,
        of=('rpn.student.deltas', 'rpn.teacher.deltas', 'rpn.target', 'rpn.count'),
        weight=0.5,
    ),
    loss_rois_bounded=dict(
        type='kdtasks.detection.BoundedRegressionLoss',
        margin=0.0,
        of=('rois.student.deltas', 'rois.teacher.deltas', 'rois.target', 'rois.count'),
        weight=0.5,
    ),
)
