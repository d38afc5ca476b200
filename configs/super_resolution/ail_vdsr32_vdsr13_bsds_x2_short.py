# VDSR of width 32 teaches one of width 13, 10 layers, BSDS: AIL's release, scaled down (arXiv
# 1806.01576).
# Run:     python tools/train.py configs/super_resolution/ail_vdsr32_vdsr13_bsds_x2_short.py
# Expect:  PSNR-Y on B100: alone 30.548 ± 0.060 dB, taught 30.464 ± 0.056 over 5 seeds, teacher
#          29.727, bicubic 29.57; 4 minutes
task = 'kdtasks.super_resolution.trainer'

student = dict(type='kdtasks.super_resolution.models.VDSR', width=13, depth=10)
teacher = dict(type='kdtasks.super_resolution.models.VDSR', width=32, depth=10)
losses = dict(loss_l2=dict(type='torch.nn.MSELoss', reduction='sum', of=('student', 'target')))

_train = dict(
    type='kdtasks.super_resolution.data.bsds', color='y', enlarged=True, patch=41, repeat=4
)
_test = dict(
    type='kdtasks.super_resolution.data.bsds', train=False, scale=2, color='y', enlarged=True
)
# an epoch: 20 steps
data = dict(train=dict(_train, scale=2), batch_size=16, test_batch_size=1, test=_test)
channels_last = True

# nearly always binds: a step of SGD has about the same length everywhere
clip_grad = 0.4
# released: 0.1; see README
optimizer = dict(type='torch.optim.SGD', lr=0.03, momentum=0.9, weight_decay=1e-4)
schedule = dict(type='MultiStepLR', milestones=[1, 2, 3, 4], gamma=0.1)
# epochs of a round: the learning rate falls to a tenth at each fifth of it
length = 5
val_interval = 50

stages = dict(type='kdtasks.super_resolution.ail.released_stages', repeat=2)
