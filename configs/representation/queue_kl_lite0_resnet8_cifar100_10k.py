# The same by similarities to a queue (CompRess, arXiv 2010.14713, one queue) in the place of
# regression; without the stage "supervised", which is the same.
# Run:     python tools/train.py configs/representation/queue_kl_lite0_resnet8_cifar100_10k.py
# Expect:  kNN of the test images 9.8 ± 0.9 % untaught, 23.0 ± 0.7 % taught over 3 seeds, with labels
#          17.7 ± 0.7 %; needs pip install 'kdtasks[pretrained]'
_base_ = ['../_base_/representation_cifar100_10k.py']
losses = dict(
    loss_queue=dict(
        type='kdtasks.general.QueueKLLoss', size=4096, of=('student.embedding', 'teacher.embedding')
    )
)
stages = dict(supervised=None)
