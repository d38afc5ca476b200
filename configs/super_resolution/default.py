# A small network taught to enlarge photos by 2: adaptive importance learning in rounds (arXiv
# 1806.01576). No download.
# Run:     python tools/train.py configs/super_resolution/default.py
# Expect:  PSNR-Y: student alone 34.34 ± 0.03 dB, taught 34.25 ± 0.03 over 5 seeds, teacher 34.51,
#          bicubic 33.16; a minute
task = 'kdtasks.super_resolution.trainer'

student = dict(type='kdtasks.super_resolution.models.ESPCN', widths=(16, 16))
teacher = dict(type='kdtasks.super_resolution.models.ESPCN', widths=(32, 32, 32, 32))
# of the teacher, and alone
losses = dict(loss_l2=dict(type='torch.nn.MSELoss', of=('student', 'target')))

data = dict(
    train=dict(type='kdtasks.super_resolution.data.photos', scale=2, color='y', patch=32),
    test=dict(type='kdtasks.super_resolution.data.photos', train=False, scale=2, color='y'),
    batch_size=8,
    test_batch_size=1,
)
optimizer = dict(type='torch.optim.Adam', lr=1e-3)
length = dict(iterations=1000)
schedule = dict(
    type='CosineRestartLR', periods=[200] * 5, restart_weights=[1] * 5, eta_min=0, by_epoch=False
)
val_interval = dict(iterations=1000)
checkpoint_interval = dict(iterations=1000)

stages = dict(
    type='kdtasks.super_resolution.ail.round_stages', rounds=5, loss=dict(reduction='mean')
)
channels_last = True
threads = 1  # such small layers run faster on one
