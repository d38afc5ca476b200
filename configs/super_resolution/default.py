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

_round = dict(length=dict(iterations=200), schedule=dict(type='CosineAnnealingLR', by_epoch=False))
_ail = dict(type='kdtasks.super_resolution.AILLoss', reduction='mean')
stages = [
    dict(name='teacher', model='teacher'),
    dict(name='alone'),  # the same 1000 steps, in one piece
    dict(
        _round,
        name='round0',
        teachers=dict(teacher='teacher'),
        losses=dict(loss_ail=dict(_ail, round=0, of=('student', 'teacher', 'target'))),
    ),
    *[
        dict(
            _round,
            name=f'round{t}' if t < 4 else 'distilled',
            student='keep',
            optimizer_state='keep',
            teachers=dict(teacher='teacher', previous=f'round{t - 1}'),
            losses=dict(
                loss_ail=dict(_ail, round=t, of=('student', 'teacher', 'previous', 'target'))
            ),
        )
        for t in range(1, 5)
    ],
]
channels_last = True
threads = 1  # such small layers run faster on one
