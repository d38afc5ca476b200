# Luma of BSDS photos: 80 to train on in patches, the 100 of B100 for the test, enlarged by 2. Below
# KDTASKS_DATA: bsds/train/<any name>.jpg and bsds/b100/<any name>.jpg.
data = dict(
    # an epoch: 160 steps
    train=dict(type='kdtasks.super_resolution.data.bsds', scale=2, color='y', patch=32, repeat=16),
    test=dict(type='kdtasks.super_resolution.data.bsds', train=False, scale=2, color='y'),
    batch_size=8,
    test_batch_size=1,
)
