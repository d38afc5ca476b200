# Of Chen et al. (NIPS 2017; no arXiv id) the hint with its adapter only, on
# chen2017_faster_rcnn_bccd_small.py.
# Run:     python tools/train.py configs/detection/chen2017_ablation/hint.py
# Expect:  mAP alone 43.9 ± 1.6, taught 45.6 ± 2.1 over 5 seeds; five minutes on one CPU core
_base_ = ['../../_base_/bccd.py', '../../_base_/faster_rcnn_small.py', '../../_base_/adamw_20e.py']
losses = dict(
    # named, so that all arms share one control
    loss_rpn_hard=dict(of='student.loss_objectness', weight=1.0),
    loss_rois_hard=dict(of='student.loss_classifier', weight=1.0),
    loss_hint=dict(
        type='kdtasks.detection.HintLoss',
        of=('features.student.3', 'features.teacher.3'),
        weight=0.5,
    ),
)
