# Stanford Online Products: 59,551 images of 11,318 products train; 60,502 of 11,316 others are for testing. Each has 2 to 12
# images. As pytorch-metric-learning reads it (download=True fetches it); below KDTASKS_DATA sop/Stanford_Online_Products/…
data = dict(
    train=dict(type='kdtasks.metric_learning.data.pml_set', name='StanfordOnlineProducts', train=True),
    test=dict(type='kdtasks.metric_learning.data.pml_set', name='StanfordOnlineProducts', train=False),
    batch_size=120,                     # RKD's authors fill 128 with 5 images a class, the last class cut
    per_class=5,                        # of a product with fewer, all, some of them twice
    iterations_per_epoch=500,
    test_batch_size=120,
    workers=8,
)
