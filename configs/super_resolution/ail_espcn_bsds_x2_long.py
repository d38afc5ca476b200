# ail_espcn_bsds_x2_short.py (arXiv 1806.01576) with four times the steps, the teacher's too: 10
# rounds of 1600.
# Run:     python tools/train.py configs/super_resolution/ail_espcn_bsds_x2_long.py
# Expect:  PSNR-Y on B100: alone 31.355 ± 0.003 dB, taught 31.361 ± 0.009 over 5 seeds, teacher
#          31.579, bicubic 29.57; 5 minutes
_base_ = ['../_base_/bsds_x2_y.py', '../_base_/espcn_short.py']

# of the teacher, and alone
losses = dict(loss_l2=dict(type='torch.nn.MSELoss', of=('student', 'target')))
schedule = dict(
    type='CosineRestartLR', periods=[1600] * 10, restart_weights=[1] * 10, eta_min=0, by_epoch=False
)
length = dict(iterations=16000)
val_interval = dict(iterations=16000)

_round = dict(length=dict(iterations=1600), schedule=dict(type='CosineAnnealingLR', by_epoch=False))
_ail = dict(type='kdtasks.super_resolution.AILLoss', reduction='mean')
stages = [
    dict(name='teacher', model='teacher'),
    dict(name='alone'),
    dict(
        _round,
        name='round0',
        teachers=dict(teacher='teacher'),
        losses=dict(loss_ail=dict(_ail, round=0, of=('student', 'teacher', 'target'))),
    ),
    *[
        dict(
            _round,
            name=f'round{t}' if t < 9 else 'distilled',
            student='keep',
            optimizer_state='keep',
            teachers=dict(teacher='teacher', previous=f'round{t - 1}'),
            losses=dict(
                loss_ail=dict(_ail, round=t, of=('student', 'teacher', 'previous', 'target'))
            ),
        )
        for t in range(1, 10)
    ],
]
