# The same from 2,500 small photos of anything (FitNets, arXiv 1412.6550) in the place of the blood
# smears, which only the test sees; as many steps.
# Run:     python tools/train.py configs/representation/feature_lite0_small_resnet_wild.py
# Expect:  kNN of the cells 89.5 %, untaught 71.3 (one seed), 46 seconds; needs pip install 'kdtasks[pretrained]', and 'wild' below KDTASKS_DATA
_base_ = ['feature_lite0_small_resnet_bccd.py']
data = dict(
    train=dict(
        _delete_=True,
        type='kdtasks.representation.data.unlabelled_folder',
        root='wild',
        size=96,
        limit=2500,
        mean=[0.66, 0.64, 0.72],  # as the detectors see theirs
        std=[0.14, 0.18, 0.10],
        augment=dict(crop=8, flip=True, pad_mode='reflect'),
    ),
    batch_size=32,
)
length = 13  # epochs of 78 steps
val_interval = 3
