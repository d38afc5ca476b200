# 20 epochs of AdamW with a cosine, from scratch: ours, for small detectors on small data.
optimizer = dict(type='torch.optim.AdamW', lr=2e-3, weight_decay=0.01)
schedule = [
    dict(type='LinearLR', start_factor=0.02, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR'),
]
clip_grad = 10.0
length = 20
val_interval = 10
log_interval = 25
threads = 1  # such small layers run faster on one
