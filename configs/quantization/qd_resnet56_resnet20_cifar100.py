# ResNet-20 in 4 bits taught by ResNet-56 on CIFAR-100: quantized distillation and learned levels
# (arXiv 1802.05668), at full length for a GPU.
# Run:     python tools/train.py configs/quantization/qd_resnet56_resnet20_cifar100.py
# Expect:  not measured here
_base_ = ['../classification/kd_resnet56_resnet20_cifar100.py']

student = dict(
    _delete_=True,
    type='kdtasks.quantization.quantized',
    model={{_base_.student}},
    bits=4,
    bucket_size=256,
)
# of the levels alone: rate and length of the released code
stages = dict(
    type='kdtasks.quantization.quantized_distillation.stages',
    levels=dict(
        optimizer=dict(type='torch.optim.SGD', lr=1e-5, momentum=0.9, nesterov=True),
        schedule=[],
        length=30,
    ),
)
packed = True
