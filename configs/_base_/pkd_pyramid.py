# PKD on all levels of a pyramid of three; 10 a level is the released weight for RetinaNet. A student
# with other channels than its teacher gets a 1x1 convolution; in the release both have 256.
losses = {
    f'loss_pkd_{level}': dict(
        type='kdtasks.detection.PKDLoss',
        of=(f'features.student.{level}', f'features.teacher.{level}'),
        weight=10.0,
    )
    for level in (1, 2, 3)
}
