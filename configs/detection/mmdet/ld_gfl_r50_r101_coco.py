# GFL R-50 taught by R-101 inside MMDetection 3: LD (arXiv 2102.12252); for a GPU.
# Run:     python MMDET/tools/train.py configs/detection/mmdet/ld_gfl_r50_r101_coco.py
# Expect:  (not run here: it needs a GPU and COCO; published: 40.1 alone, 41.1 taught)
#
# MMDET is a checkout of MMDetection, or mmdet/.mim in the site-packages. Data, schedule and hooks
# are those of the base; only the model is ours. T and weight are those of MMDetection's own LDHead.
_base_ = ['mmdet::gfl/gfl_r50_fpn_1x_coco.py']
model = dict(
    _delete_=True,
    type='kdtasks.detection.plugin.DistillDetector',
    student={{_base_.model}},
    teacher='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
    # of mmdet's model zoo: mim download mmdet --config gfl_r101_fpn_ms-2x_coco --dest checkpoints
    teacher_checkpoint='checkpoints/gfl_r101_fpn_mstrain_2x_coco_20200629_200126-dd12f847.pth',
    losses=dict(
        loss_ld=dict(
            type='kdtasks.detection.LDLoss',
            temperature=10.0,
            of=('anchors.student.edges', 'anchors.teacher.edges', 'anchors.student.logits'),
            weight=0.25,
        )
    ),
)
