# A small ESPCN to enlarge by 2, BSDS to B100: adaptive importance learning, no teacher (after arXiv
# 1806.01576).
# Run:     python tools/train.py configs/super_resolution/ail_no_teacher_espcn_bsds_x2_short.py
# Expect:  PSNR-Y on B100: alone 31.183 ± 0.011 dB, taught 31.161 ± 0.027 over 5 seeds, bicubic
#          29.57; 3 minutes
_base_ = ['../_base_/bsds_x2_y.py', '../_base_/espcn_short.py']

# of alone, and of round 0
losses = dict(loss_l2=dict(type='torch.nn.MSELoss', of=('student', 'target')))

stages = dict(
    type='kdtasks.super_resolution.ail.round_stages',
    loss=dict(variant='no_teacher', reduction='mean', normalize=True),
)
