# Images of 64x64: real digits 0 to 4 (scikit-learn's) scattered over real photos (scikit-learn's
# two), so that all boxes are known; the layout is synthetic. The teacher has learned from 3,000
# images. The student has the boxes of 200 of them, and of 800 others only the images.
data = dict(
    train=dict(
        type='kdtasks.detection.data.few_labels',
        images=200,
        dataset=dict(
            type='kdtasks.detection.data.digits_on_photos', images=1000, size=64, classes=5
        ),
    ),
    test=dict(
        type='kdtasks.detection.data.digits_on_photos', train=False, images=200, size=64, classes=5
    ),
    batch_size=8,  # labelled images a step
    # and unlabelled ones, which only the teacher can speak about
    unlabelled_per_batch=16,
    test_batch_size=50,
    iterations_per_epoch=50,
)
teacher_training = dict(
    length=16,
    data=dict(
        train=dict(type='kdtasks.detection.data.digits_on_photos', images=3000, size=64, classes=5),
        batch_size=16,
    ),
)
