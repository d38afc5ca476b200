# VDSR of width 64 teaches one of width 13 to enlarge by 2, 291 images: nearly AIL's release (arXiv 1806.01576).
# Run:     python tools/train.py configs/super_resolution/ail_vdsr64_vdsr13_291_x2.py
# Expect:  not measured here: 10 rounds of 50 epochs of 29 thousand patches want a GPU
task = 'kdtasks.super_resolution.trainer'

student = dict(type='kdtasks.super_resolution.models.VDSR', width=13)
teacher = dict(type='kdtasks.super_resolution.models.VDSR', width=64)
losses = dict(loss_l2=dict(type='torch.nn.MSELoss', reduction='sum', of=('student', 'target')))

# The 91 and 200 images that the field trains on, below KDTASKS_DATA in 291/; the test is B100. Teacher and plain student see
# all three scales in one epoch, at most 86 thousand patches (release: about 92 thousand); the student taught sees one scale.
# Unlike the release: patches at random places, mirrored and turned, where it has a fixed grid of squares of 41 pixels; and the
# luma of HR is not rounded. Variants smaller than a patch are left out, with a warning.
_train = dict(type='kdtasks.super_resolution.data.image_folder', root='291', color='y', enlarged=True, patch=41,
              downsizes=(1.0, 0.7, 0.5), repeat=33)
data = dict(train=dict(_train, scale=2), batch_size=128, test_batch_size=1,
            test=dict(type='kdtasks.super_resolution.data.bsds', train=False, scale=2, color='y', enlarged=True))
_mixed = dict(train=dict(_train, scale=(2, 3, 4), repeat=33))

optimizer = dict(type='torch.optim.SGD', lr=0.1, momentum=0.9, weight_decay=1e-4)
clip_grad = 0.4                         # nearly always binds: a step of SGD has about the same length everywhere
_epochs = 50                            # of a round: the learning rate falls to a tenth at each fifth of it
_step = dict(type='MultiStepLR', milestones=[10, 20, 30, 40], gamma=0.1)
_again = dict(type='MultiStepLR', milestones=[_epochs * t for t in range(1, 10)], gamma=1e4)        # and is set back
_steps = dict(type='MultiStepLR', milestones=[_epochs * t + m for t in range(10) for m in _step['milestones']], gamma=0.1)
length = _epochs
schedule = _step
val_interval = 10

_ail = dict(type='kdtasks.super_resolution.AILLoss', reduction='sum')
stages = [
    dict(name='teacher', model='teacher', data=_mixed),
    dict(name='plain', data=_mixed),                                    # where both arms start, as in the release
    dict(name='alone', student='plain', length=10 * _epochs, schedule=[_steps, _again]),
    dict(name='round0', student='plain', teachers=dict(teacher='teacher'),
         losses=dict(loss_ail=dict(_ail, round=0, of=('student', 'teacher', 'target')))),
    *[dict(name=f'round{t}' if t < 9 else 'distilled', student=f'round{t - 1}', optimizer_state='keep',
           teachers=dict(teacher='teacher', previous=f'round{t - 1}'),
           losses=dict(loss_ail=dict(_ail, round=t, of=('student', 'teacher', 'previous', 'target')))) for t in range(1, 10)],
]
