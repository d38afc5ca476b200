# 36 epochs of SGD, a tenth of the rate after 27 and 33 (the 3x schedule of detectors, for 8 images
# a step).
optimizer = dict(type='torch.optim.SGD', lr=0.01, momentum=0.9, weight_decay=1e-4)
schedule = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, end=200),
    dict(type='MultiStepLR', milestones=[27, 33], gamma=0.1),
]
clip_grad = 10.0
length = 36
val_interval = 6
log_interval = 25
