# A ResNet-8 of handwritten digits in 8 bits learns from its full-precision self: QAD (arXiv
# 2601.20088), beside post-training quantization and training on the labels. No download.
# Run:     python tools/train.py configs/quantization/qad_digits.py
# Expect:  in full precision 97.8 ± 0.4 % over 5 seeds, and nothing to gain: in eight bits the same,
#          without training, with labels (97.8 ± 0.4 %) and by QAD (97.9 ± 0.4 %). The ONNX files
#          answer as their students but for one image of 539 in 3 of 15; 101 KB are 0.32 of the float
#          file's 320 KB, 0.054 ms an image are 1.5 times its 0.036: 8x8 pixels are too few to gain
#          by. Half a minute on a CPU core
_base_ = ['../_base_/digits.py']
task = 'kdtasks.classification.trainer'

student = dict(
    type='kdtasks.quantization.fake_quantized',
    model=dict(
        type='kdtasks.classification.models.resnet8', width=16, in_channels=1, num_classes=10
    ),
    calibrate=20,  # an epoch
)
losses = dict(loss_cls=dict(type='torch.nn.CrossEntropyLoss', of=('student', 'target')))
# half of the training images, all labelled
data = dict(
    train=dict(
        _delete_=True, type='kdtasks.classification.data.digits', train=True, part='teacher'
    ),
    batch_size=32,
    unlabelled_per_batch=0,
)
teacher_training = dict(_delete_=True)

optimizer = dict(type='torch.optim.SGD', lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
schedule = dict(type='CosineAnnealingLR')
length = 20  # epochs of 20 steps
stages = dict(
    type='kdtasks.quantization.qad.stages',
    training=dict(length=5, optimizer=dict(lr=0.002, weight_decay=0.0)),
)
onnx = True
val_interval = 5
log_interval = 20
threads = 1  # such small layers run faster on one
