# CWD on all levels of a pyramid of three; T = 1 and 10 a level are the released configs'. A student
# with other channels than its teacher gets a 1x1 convolution.
losses = {
    f'loss_cwd_{level}': dict(
        type='kdtasks.detection.CWDLoss',
        of=(f'features.student.{level}', f'features.teacher.{level}'),
        weight=10.0,
    )
    for level in (1, 2, 3)
}
