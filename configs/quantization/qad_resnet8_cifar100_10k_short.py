# A ResNet-8 of CIFAR-100 (10,000 images) in 8 bits learns from its full-precision self: QAD (arXiv
# 2601.20088), beside post-training quantization and training on the labels.
# Run:     python tools/train.py configs/quantization/qad_resnet8_cifar100_10k_short.py
# Expect:  not measured at 16 x 16, which the data now has; README.md beside it has seed 0 of 32 x 32
_base_ = ['../_base_/cifar100_10k_short.py']

student = dict(
    _delete_=True,
    type='kdtasks.quantization.fake_quantized',
    model=dict(type='kdtasks.classification.models.resnet8', num_classes=100),
)
losses = dict(loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')))
stages = dict(
    type='kdtasks.quantization.qad.stages',
    training=dict(
        length=2,
        optimizer=dict(lr=0.005, weight_decay=0.0),
        schedule=dict(type='CosineAnnealingLR', by_epoch=False),
    ),
)
amp = None  # QAD's loss is a small difference of large logits
onnx = True
