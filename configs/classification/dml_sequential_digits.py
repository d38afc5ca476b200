# dml_digits.py with the steps of the paper's algorithm 1: the second network learns from what the
# first thinks after its step (DML, arXiv 1706.00384).
# Run:     python tools/train.py configs/classification/dml_sequential_digits.py
# Expect:  student alone 57.3 ± 2.9 %, with a peer 70.9 ± 2.6 % over 3 seeds (both at
#          once 69.9 ± 3.3); half a minute on a CPU core
_base_ = ['dml_digits.py']
distiller = dict(type='kdtasks.general.SequentialDMLDistiller')
