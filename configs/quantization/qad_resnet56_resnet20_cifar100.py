# ResNet-20 of CIFAR-100, taught by ResNet-56, then in 8 bits by itself: QAD (arXiv 2601.20088), at
# full length for a GPU.
# Run:     python tools/train.py configs/quantization/qad_resnet56_resnet20_cifar100.py
# Expect:  not measured here
_base_ = ['../classification/kd_resnet56_resnet20_cifar100.py']

student = dict(
    _delete_=True,
    type='kdtasks.quantization.fake_quantized',
    model={{_base_.student}},
    calibrate=100,
)
# length and rate are ours
stages = dict(
    type='kdtasks.quantization.qad.stages',
    training=dict(
        length=20,
        optimizer=dict(lr=0.005, weight_decay=0.0),
        schedule=dict(_delete_=True, type='CosineAnnealingLR'),
    ),
)
onnx = True
