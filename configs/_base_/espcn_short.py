# An ESPCN of 12 thousand parameters and a teacher of 66 thousand, by Adam in 10 rounds of 400
# steps, each of which sets the learning rate back. All arms have the same steps and the same
# rounds.
task = 'kdtasks.super_resolution.trainer'

student = dict(type='kdtasks.super_resolution.models.ESPCN', widths=(24, 24, 24))
teacher = dict(type='kdtasks.super_resolution.models.ESPCN', widths=(32,) * 8)

optimizer = dict(type='torch.optim.Adam', lr=1e-3)
schedule = dict(
    type='CosineRestartLR', periods=[400] * 10, restart_weights=[1] * 10, eta_min=0, by_epoch=False
)
length = dict(iterations=4000)
val_interval = dict(iterations=4000)
checkpoint_interval = dict(iterations=1000)
channels_last = True
