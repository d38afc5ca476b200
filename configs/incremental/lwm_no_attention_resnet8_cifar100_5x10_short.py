# lwm_resnet8_cifar100_5x10_short.py (arXiv 1811.08051) without attention: what is left is distillation by sigmoids.
# Run:     python tools/train.py configs/incremental/lwm_no_attention_resnet8_cifar100_5x10_short.py
# Expect:  not measured yet
_base_ = ['./lwm_resnet8_cifar100_5x10_short.py']

losses = dict(loss_attention=dict(weight=0))
