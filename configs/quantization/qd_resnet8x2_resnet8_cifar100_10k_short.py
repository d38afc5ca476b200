# A ResNet-8 in 2 bits taught by one of twice the width on 10,000 images of CIFAR-100: quantized
# distillation and learned levels (arXiv 1802.05668); two CPU cores.
# Run:     python tools/train.py configs/quantization/qd_resnet8x2_resnet8_cifar100_10k_short.py
# Expect:  not measured here yet
_base_ = ['../classification/kd_resnet8x2_resnet8_cifar100_10k_short.py']

student = dict(
    _delete_=True,
    type='kdtasks.quantization.quantized',
    model={{_base_.student}},
    bits=2,
    bucket_size=256,
)
# of the levels alone, at the released rate
stages = dict(
    type='kdtasks.quantization.quantized_distillation.stages',
    levels=dict(
        optimizer=dict(type='torch.optim.SGD', lr=1e-5, momentum=0.9, nesterov=True), length=4
    ),
)
packed = True
