# scikit-learn's 1,797 real handwritten digits, 8x8, grey; they come with the package. 0 to 5 train;
# 6 to 9 are for testing.
data = dict(
    train=dict(type='kdtasks.metric_learning.data.digits', train=True, augment=dict(crop=1)),
    test=dict(type='kdtasks.metric_learning.data.digits', train=False),
    batch_size=60,
    per_class=10,
)
