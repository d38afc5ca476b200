# Cars-196: 98 models of cars train; 98 others are for testing. As pytorch-metric-learning reads it
# (download=True fetches it); below KDTASKS_DATA cars196/{names.csv,anno_train.csv,…}
data = dict(
    train=dict(type='kdtasks.metric_learning.data.pml_set', name='Cars196', train=True),
    test=dict(type='kdtasks.metric_learning.data.pml_set', name='Cars196', train=False),
    # RKD's authors fill 128 with 5 images a class, the last class cut
    batch_size=120,
    per_class=5,
    iterations_per_epoch=100,
    test_batch_size=120,
    workers=8,
)
