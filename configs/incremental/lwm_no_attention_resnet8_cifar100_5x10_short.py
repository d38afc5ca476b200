# lwm_resnet8_cifar100_5x10_short.py (arXiv 1811.08051) without attention: what is left is
# distillation by sigmoids.
# Run:     python tools/train.py configs/incremental/lwm_no_attention_resnet8_cifar100_5x10_short.py
# Expect:  5 seeds, class-IL: fine-tuning 15.5 ± 0.8 %, taught 20.5 ± 1.1; task-IL: 38.7 ± 1.3, 54.8
#          ± 1.7; joint 34.1, 60.3
_base_ = ['./lwm_resnet8_cifar100_5x10_short.py']

losses = dict(loss_attention=dict(weight=0))
