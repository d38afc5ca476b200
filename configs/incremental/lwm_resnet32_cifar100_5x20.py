# lwm_resnet32_cifar100_10x10.py (arXiv 1811.08051) with twenty new classes at a time.
# Run:     python tools/train.py configs/incremental/lwm_resnet32_cifar100_5x20.py
# Expect:  not run here to its end: it wants a GPU
_base_ = ['./lwm_resnet32_cifar100_10x10.py']

student = dict(sizes=(20,) * 5)
data = dict(train=dict(stream=dict(sizes=(20,) * 5)), test=dict(stream=dict(sizes=(20,) * 5)))
