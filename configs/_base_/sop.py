# Stanford Online Products: half of the products train, the others are for testing; most have few
# images. As pytorch-metric-learning reads it (download=True fetches it); below KDTASKS_DATA
# sop/Stanford_Online_Products/…
data = dict(
    train=dict(
        type='kdtasks.metric_learning.data.pml_set', name='StanfordOnlineProducts', train=True
    ),
    test=dict(
        type='kdtasks.metric_learning.data.pml_set', name='StanfordOnlineProducts', train=False
    ),
    # RKD's authors fill 128 with 5 images a class, the last class cut
    batch_size=120,
    per_class=5,  # of a product with fewer, all, some of them twice
    iterations_per_epoch=500,
    test_batch_size=120,
    workers=8,
)
