# RetinaNet R-18 taught by R-50 inside MMDetection 3: ADL (arXiv 1901.00366); for a GPU.
# Run:     python MMDET/tools/train.py configs/detection/mmdet/adl_retinanet_r50_r18_coco.py
# Expect:  (not run here: it needs a GPU and COCO)
#
# MMDET is a checkout of MMDetection, or mmdet/.mim in the site-packages. Data, schedule and hooks
# are those of the base; only the model is ours. Checkpoints have the plain student's names: test
# them with mmdet's tools/test.py and the base.
_base_ = ['mmdet::retinanet/retinanet_r18_fpn_1x_coco.py']
model = dict(
    _delete_=True,
    type='kdtasks.detection.plugin.DistillDetector',
    student={{_base_.model}},
    teacher='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    # of mmdet's model zoo: mim download mmdet --config retinanet_r50_fpn_1x_coco --dest checkpoints
    teacher_checkpoint='checkpoints/retinanet_r50_fpn_1x_coco_20200130-c2398f9e.pth',
    losses=dict(
        loss_adl=dict(
            type='kdtasks.detection.ADLLoss',
            preset='paper',
            of=('student.cls_logits', 'teacher.cls_logits', 'anchors.valid'),
            weight=1.0,
        )
    ),
)
