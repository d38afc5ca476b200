# KD (arXiv 1503.02531) on CIFAR-100 as in the short config, augmented by kornia.
# Run:     python tools/train.py configs/classification/kd_resnet8x2_resnet8_cifar100_kornia_short.py
# Expect:  not run to its end here; 6 epochs are short for such a recipe. Needs kdtasks[augment]
_base_ = ['kd_resnet8x2_resnet8_cifar100_short.py']

# Each image has a brightness, a contrast, a saturation of its own. ColorJitter would take longer:
# in kornia the order of the three is one for a whole batch.
data = dict(
    train=dict(
        augment=[
            dict(type='kornia.augmentation.RandomCrop', size=(32, 32), padding=4),
            dict(type='kornia.augmentation.RandomHorizontalFlip'),
            dict(type='kornia.augmentation.RandomRotation', degrees=15.0, p=0.5),
            dict(type='kornia.augmentation.RandomBrightness', brightness=(0.8, 1.2), p=0.5),
            dict(type='kornia.augmentation.RandomContrast', contrast=(0.8, 1.2), p=0.5),
            dict(type='kornia.augmentation.RandomSaturation', saturation=(0.8, 1.2), p=0.5),
            dict(type='kornia.augmentation.RandomErasing', scale=(0.02, 0.2), p=0.25),
        ]
    )
)
