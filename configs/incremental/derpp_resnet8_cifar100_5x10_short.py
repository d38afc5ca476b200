# Ten new classes at a time, a memory of 1,000: DER++ (arXiv 2004.07211) against the same without the
# stored logits, which is replay of as many.
# Run:     python tools/train.py configs/incremental/derpp_resnet8_cifar100_5x10_short.py
# Expect:  not run here to its end: half an hour on one CPU core
# The protocol is mammoth's: a reservoir over the stream, draws as large as a batch, a head with all
# columns from the start, its alpha and beta; class-IL and task-IL are what FACIL calls TAg and TAw.
# Otherwise than there: 50 classes, ResNet-8, 4 epochs (50 there), momentum and a cosine.
_base_ = ['../_base_/cifar100_5x10.py', '../_base_/resnet8_4e.py', '../_base_/derpp.py']

distiller = dict(size=1000)
