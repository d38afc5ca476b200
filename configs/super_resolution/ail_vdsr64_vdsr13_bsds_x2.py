# ail_vdsr64_vdsr13_291_x2.py (arXiv 1806.01576) on the 80 photos of BSDS: the release at full
# length, from BSDS to B100.
# Run:     python tools/train.py configs/super_resolution/ail_vdsr64_vdsr13_bsds_x2.py
# Expect:  not measured here: 10 rounds of 50 epochs of 6 thousand patches want a GPU
_base_ = ['./ail_vdsr64_vdsr13_291_x2.py']

data = dict(
    train=dict(
        _delete_=True,
        type='kdtasks.super_resolution.data.bsds',
        scale=2,
        color='y',
        enlarged=True,
        patch=41,
        repeat=80,
    )
)
