# The same on images of the 80 classes that metric learning trains on, 125 of each, so that the
# other 20 stay unseen (FitNets, arXiv 1412.6550); without the stage "supervised".
# Run:     python tools/train.py configs/representation/feature_lite0_resnet8_cifar100_80_classes.py
# Expect:  kNN 17.4 %, untaught 9.2 (one seed); six minutes on one CPU core; needs pip install 'kdtasks[pretrained]'
_base_ = ['feature_lite0_resnet8_cifar100_10k.py']
data = dict(
    train=dict(
        _delete_=True,
        type='kdtasks.representation.data.without_labels',
        dataset=dict(type='kdtasks.metric_learning.data.cifar100', per_class=125),
    )
)
stages = dict(supervised=None)
