# A ResNet-8 of CIFAR-100 (10,000 images) in 8 bits learns from its full-precision self: QAD (arXiv
# 2601.20088), beside post-training quantization and training on the labels.
# Run:     python tools/train.py configs/quantization/qad_resnet8_cifar100_10k_short.py
# Expect:  (seed 0) full precision 17.97 %, ptq 17.67, alone 17.90, qad 17.71; their ONNX files 17.97,
#          17.67, 17.90 and 17.73: what is trained is what ships. 108 KB are 0.31 of the float file's
#          346 KB, and 0.17 to 0.19 ms an image 0.8 to 0.85 of its 0.22 (one thread, with VNNI); one
#          seed says nothing of the difference between the arms
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
