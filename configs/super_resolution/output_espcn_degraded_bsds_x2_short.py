# As output_espcn_bsds_x2_short.py, of photos that are blurred, halved, noisy and stored as JPEG: the
# network enlarges and restores (no arXiv id).
# Run:     python tools/train.py configs/super_resolution/output_espcn_degraded_bsds_x2_short.py
# Expect:  not run to its end here. Needs kdtasks[augment]
_base_ = ['../_base_/bsds_x2_y.py', '../_base_/espcn_short.py']

losses = dict(
    # alone: weight 1
    loss_l1=dict(type='torch.nn.L1Loss', of=('student', 'target'), weight=0.5),
    loss_output=dict(type='torch.nn.L1Loss', of=('student', 'teacher'), weight=0.5),
)
# one after the other; the strengths are ours
_steps = [
    dict(
        type='kornia.augmentation.RandomGaussianBlur', kernel_size=(9, 9), sigma=(0.2, 1.5), p=1.0
    ),
    'downscale',
    dict(type='kornia.augmentation.RandomGaussianNoise', std=0.02, p=1.0),
    dict(type='kornia.augmentation.RandomJPEG', jpeg_quality=(40.0, 90.0), p=1.0),
]
_photos = dict(type='kdtasks.super_resolution.data.bsds', scale=2)
_degraded = dict(
    _delete_=True, type='kdtasks.super_resolution.degradation.degraded', color='y', steps=_steps
)
data = dict(
    train=dict(_degraded, dataset=dict(_photos, patch=32, repeat=16)),
    test=dict(_degraded, dataset=dict(_photos, train=False)),
)
