# The schedule of RepDistiller's CIFAR-100 table: 240 epochs of SGD, a tenth of the rate after 150,
# 180 and 210.
optimizer = dict(type='torch.optim.SGD', lr=0.05, momentum=0.9, weight_decay=5e-4)
schedule = dict(type='MultiStepLR', milestones=[150, 180, 210], gamma=0.1)
length = 240
val_interval = 10
checkpoint_interval = 10
log_interval = 100
