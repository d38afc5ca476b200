# A small network in 2 bits, taught by a larger one in full precision, on handwritten digits:
# quantized distillation and learned levels (arXiv 1802.05668). No download.
# Run:     python tools/train.py configs/quantization/default.py
# Expect:  in these bits alone 79.3 ± 2.4 %, taught 97.8 ± 0.5 % over 5 seeds (in full precision
#          97.9 ± 0.4), teacher 98.0 %; two minutes on a CPU core
_base_ = ['../classification/default.py']

student = dict(
    _delete_=True,
    type='kdtasks.quantization.quantized',
    model=dict(type='kdtasks.classification.models.digits_cnn', width=16, num_classes=10),
    bits=2,
    bucket_size=256,
)
# of the levels alone, at the released rate
stages = dict(
    type='kdtasks.quantization.quantized_distillation.stages',
    levels=dict(
        optimizer=dict(type='torch.optim.SGD', lr=1e-5, momentum=0.9, nesterov=True), length=20
    ),
)
packed = True
