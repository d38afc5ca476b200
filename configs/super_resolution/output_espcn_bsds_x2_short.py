# A small ESPCN taught by a larger one to enlarge by 2, BSDS to B100: half L1 to the target, half to
# its output (no arXiv id).
# Run:     python tools/train.py configs/super_resolution/output_espcn_bsds_x2_short.py
# Expect:  PSNR-Y on B100: alone 31.199 ± 0.018 dB, taught 31.234 ± 0.015 over 5 seeds, teacher
#          31.381, bicubic 29.57; 3 minutes
_base_ = ['../_base_/bsds_x2_y.py', '../_base_/espcn_short.py']

losses = dict(
    # alone: weight 1
    loss_l1=dict(type='torch.nn.L1Loss', of=('student', 'target'), weight=0.5),
    loss_output=dict(type='torch.nn.L1Loss', of=('student', 'teacher'), weight=0.5),
)
