# scikit-learn's 1,797 real handwritten digits, 8x8, grey; they come with the package. 30 % are kept
# for testing. The others are two halves: the teacher has all labels of one; the student has the
# images of the other, and five labels a class.
data = dict(
    train=dict(
        type='kdtasks.classification.data.few_labels',
        per_class=5,
        dataset=dict(type='kdtasks.classification.data.digits', train=True, part='student'),
    ),
    test=dict(type='kdtasks.classification.data.digits', train=False),
    batch_size=50,  # labelled images a step: all there are
    # and unlabelled ones, which only the teacher can speak about
    unlabelled_per_batch=100,
    iterations_per_epoch=20,
)
teacher_training = dict(
    data=dict(
        train=dict(
            type='kdtasks.classification.data.digits',
            train=True,
            part='teacher',
            augment=dict(crop=1),
        ),
        batch_size=64,
    )
)
