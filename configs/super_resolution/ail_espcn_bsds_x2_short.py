# A small ESPCN taught by a larger one to enlarge by 2, BSDS to B100: adaptive importance learning
# (arXiv 1806.01576).
# Run:     python tools/train.py configs/super_resolution/ail_espcn_bsds_x2_short.py
# Expect:  PSNR-Y on B100: alone 31.183 ± 0.011 dB, taught 31.184 ± 0.033 over 5 seeds, teacher
#          31.355, bicubic 29.57; 3 minutes
_base_ = ['../_base_/bsds_x2_y.py', '../_base_/espcn_short.py']

# of the teacher, and alone
losses = dict(loss_l2=dict(type='torch.nn.MSELoss', of=('student', 'target')))

stages = dict(type='kdtasks.super_resolution.ail.round_stages', loss=dict(reduction='mean'))
