# VDSR of width 64 teaches one of width 13 to enlarge by 2, 291 images: nearly AIL's release (arXiv
# 1806.01576).
# Run:     python tools/train.py configs/super_resolution/ail_vdsr64_vdsr13_291_x2.py
# Expect:  not measured here: 10 rounds of 50 epochs of 29 thousand patches want a GPU
task = 'kdtasks.super_resolution.trainer'

student = dict(type='kdtasks.super_resolution.models.VDSR', width=13)
teacher = dict(type='kdtasks.super_resolution.models.VDSR', width=64)
losses = dict(loss_l2=dict(type='torch.nn.MSELoss', reduction='sum', of=('student', 'target')))

# The 91 and 200 images that the field trains on, below KDTASKS_DATA in 291/; the test is B100.
# Teacher and plain student see all three scales in one epoch, at most 86 thousand patches (release:
# about 92 thousand); the student taught sees one scale. Unlike the release: patches at random
# places, mirrored and turned, where it has a fixed grid of squares of 41 pixels; and the luma of HR
# is not rounded. Variants smaller than a patch are left out, with a warning.
_train = dict(
    type='kdtasks.super_resolution.data.image_folder',
    root='291',
    color='y',
    enlarged=True,
    patch=41,
    downsizes=(1.0, 0.7, 0.5),
    repeat=33,
)
data = dict(
    train=dict(_train, scale=2),
    batch_size=128,
    test_batch_size=1,
    test=dict(
        type='kdtasks.super_resolution.data.bsds', train=False, scale=2, color='y', enlarged=True
    ),
)

optimizer = dict(type='torch.optim.SGD', lr=0.1, momentum=0.9, weight_decay=1e-4)
# nearly always binds: a step of SGD has about the same length everywhere
clip_grad = 0.4
schedule = dict(type='MultiStepLR', milestones=[10, 20, 30, 40], gamma=0.1)
# epochs of a round: the learning rate falls to a tenth at each fifth of it
length = 50
val_interval = 10

stages = dict(type='kdtasks.super_resolution.ail.released_stages')
