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

stages = dict(type='kdtasks.super_resolution.ail.round_stages', loss=dict(reduction='mean'))
