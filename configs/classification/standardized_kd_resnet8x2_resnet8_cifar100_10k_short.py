# ResNet-8 taught by one of twice the width on 10,000 images of CIFAR-100: KD of standardised logits
# (arXiv 2403.01427).
# Run:     python tools/train.py configs/classification/standardized_kd_resnet8x2_resnet8_cifar100_10k_short.py
# Expect:  alone 18.4 ± 0.5 %, taught 24.8 ± 0.3 % over 5 seeds, teacher 28.9 %; its training takes
#          63 s of one CPU core
_base_ = ['kd_resnet8x2_resnet8_cifar100_10k_short.py']

# weights and temperature as released for CIFAR-100
losses = dict(
    _delete_=True,
    loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target'), weight=0.1),
    loss_kd=dict(
        type='kdtasks.general.StandardizedKDLoss',
        temperature=2.0,
        of=('student', 'teacher'),
        weight=9.0,
    ),
)
