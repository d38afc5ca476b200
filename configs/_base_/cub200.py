# CUB-200-2011: 100 species of birds train; 100 others are for testing. As pytorch-metric-learning
# reads it (download=True fetches it); below KDTASKS_DATA cub200/CUB_200_2011/…
data = dict(
    train=dict(type='kdtasks.metric_learning.data.pml_set', name='CUB', train=True),
    test=dict(type='kdtasks.metric_learning.data.pml_set', name='CUB', train=False),
    # RKD's authors fill 128 with 5 images a class, the last class cut
    batch_size=120,
    per_class=5,
    iterations_per_epoch=100,
    test_batch_size=120,
    workers=8,
)
