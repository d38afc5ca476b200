# Detectron's 1x schedule for 16 images a step: 90,000 steps, a tenth of the rate after 60,000 and
# 80,000.
optimizer = dict(type='torch.optim.SGD', lr=0.01, momentum=0.9, weight_decay=1e-4)
schedule = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, end=1000),
    dict(type='MultiStepLR', by_epoch=False, milestones=[60000, 80000], gamma=0.1),
]
length = dict(iterations=90000)
val_interval = dict(iterations=10000)
checkpoint_interval = dict(iterations=2000)
log_interval = 50
