# A ResNet-8 learns EfficientNet-Lite0's features on CIFAR-100 without labels, by regression to the
# standardised teacher (FitNets, arXiv 1412.6550); for two CPU cores.
# Run:     python tools/train.py configs/representation/feature_lite0_resnet8_cifar100_10k.py
# Expect:  kNN of the test images 9.8 ± 0.9 % untaught, 18.4 ± 0.9 % taught over 3 seeds, with labels
#          17.7 ± 0.7 %; needs pip install 'kdtasks[pretrained]'
_base_ = ['../_base_/representation_cifar100_10k.py']
losses = dict(
    loss_feature=dict(
        type='kdtasks.general.FeatureLoss',
        kind='mse',
        standardize='scale',
        of=('student.embedding', 'teacher.embedding'),
    )
)
