# EDSR-baseline teaches one of a quarter of its width to enlarge DIV2K by 2: AIL on RGB with Adam
# (arXiv 1806.01576).
# Run:     python tools/train.py configs/super_resolution/ail_edsr_edsr16_div2k_x2.py
# Expect:  not measured here: 300 thousand steps want a GPU
task = 'kdtasks.super_resolution.trainer'

student = dict(type='kdtasks.super_resolution.models.EDSR', width=16)
teacher = dict(type='kdtasks.super_resolution.models.EDSR')
losses = dict(loss_l1=dict(type='torch.nn.L1Loss', of=('student', 'target')))

# Below KDTASKS_DATA: DIV2K/DIV2K_train_HR, DIV2K/DIV2K_train_LR_bicubic/X2, and the same with
# valid.
data = dict(
    train=dict(
        type='kdtasks.super_resolution.data.paired_folders',
        hr='DIV2K/DIV2K_train_HR',
        lr='DIV2K/DIV2K_train_LR_bicubic/X2',
        scale=2,
        patch=48,
        repeat=20,
    ),
    test=dict(
        type='kdtasks.super_resolution.data.paired_folders',
        hr='DIV2K/DIV2K_valid_HR',
        lr='DIV2K/DIV2K_valid_LR_bicubic/X2',
        train=False,
        scale=2,
    ),
    batch_size=16,
    test_batch_size=1,
)
optimizer = dict(type='torch.optim.Adam', lr=1e-4)
length = dict(iterations=300_000)
schedule = dict(
    type='CosineRestartLR',
    periods=[30_000] * 10,
    restart_weights=[1] * 10,
    eta_min=0,
    by_epoch=False,
)
val_interval = dict(iterations=30_000)

# release: luma
stages = dict(
    type='kdtasks.super_resolution.ail.round_stages',
    loss=dict(base='l1', channels='mean', reduction='mean'),
)
