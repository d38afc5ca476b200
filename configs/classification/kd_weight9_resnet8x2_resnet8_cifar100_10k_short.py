# ResNet-8 taught by one of twice the width on 10,000 images of CIFAR-100: KD at the weight that
# other losses have (arXiv 1503.02531).
# Run:     python tools/train.py configs/classification/kd_weight9_resnet8x2_resnet8_cifar100_10k_short.py
# Expect:  alone 18.4 ± 0.5 %, taught 26.3 ± 0.2 % over 5 seeds, teacher 28.9 %; its training takes
#          65 s of one CPU core
_base_ = ['kd_resnet8x2_resnet8_cifar100_10k_short.py']

# what standardised logits and DKD gain by their weight alone
losses = dict(loss_kd=dict(weight=9.0))
