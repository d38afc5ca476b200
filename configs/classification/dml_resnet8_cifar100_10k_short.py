# Two ResNet-8 that teach each other on 10,000 images of CIFAR-100: DML (arXiv 1706.00384).
# Run:     python tools/train.py configs/classification/dml_resnet8_cifar100_10k_short.py
# Expect:  alone 18.4 ± 0.5 %, taught 18.1 ± 0.4 % over 5 seeds; its training takes 66 s of one CPU
#          core
_base_ = ['../_base_/cifar100_10k_short.py']

peers = [dict(type='kdtasks.classification.models.resnet8', num_classes=100)]

losses = dict(
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target'), weight=0),  # alone: 1
    loss_dml=dict(type='kdtasks.general.mutual_losses', of=('peers', 'target')),
    agreement=dict(type='kdtasks.general.peer_agreement', of=('peers',)),
)
