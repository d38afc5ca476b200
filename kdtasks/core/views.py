r"""Random numbers without a stream: a hash of (seed, sample, view).

A random view of a sample must come out the same after a resume, under any number of workers or
ranks, and whatever else is in its batch. So nothing is drawn: each number is computed from what it
belongs to. With the finalizer :math:`m` of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) and its odd
constant :math:`g`, in integers modulo :math:`2^{64}`:

.. math:: h_0 = 0, \qquad h_{k+1} = m\big(h_k + (v_k + 1)\,g\big), \qquad
    v = (\text{seed}, \text{salt}, \text{index}, \text{view})

Each step is the :math:`v_k`-th number of a SplitMix64 generator seeded with what the steps before
it gave.
"""

import torch
from torch import Tensor

# the constants of SplitMix64, written as signed 64-bit integers
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def view_hash(seed: int, index: Tensor, view: Tensor | int, salt: int = 0) -> Tensor:
    """A number for each sample and view; the same on CPU and CUDA, and in every batch.

    Args:
        seed: of the run; any integer (taken modulo 2**64).
        index: int64, the sample's number in its data set; any shape.
        view: int64 that broadcasts with ``index``, on its device, or an integer: which view of the
            sample.
        salt: what the number is for. Different salts give unrelated numbers.

    Returns:
        int64, uniform over ``[0, 2**63)``, of the broadcast shape of ``index`` and ``view``. ``%
        n`` gives a uniform integer below n (its bias is below n / 2**63).

    Raises:
        TypeError: ``index`` or ``view`` is not int64.
    """
    if not isinstance(view, Tensor):
        view = torch.tensor(view, dtype=torch.int64, device="cpu")
    if index.dtype != torch.int64 or view.dtype != torch.int64:
        raise TypeError(
            f"view_hash needs int64 for index and view, got {index.dtype} and {view.dtype}"
        )
    # a CPU scalar mixes with tensors of any device
    h = torch.zeros((), dtype=torch.int64, device="cpu")
    for value in (_signed(seed), _signed(salt), index, view):
        h = _mix(h + _GOLDEN * (value + 1))
    return h & 0x7FFFFFFFFFFFFFFF


def random_numbers(key: Tensor, first: int, count: int) -> Tensor:
    """Numbers ``first, first + 1, …`` of a SplitMix64 generator for each key.

    Args:
        key: int64 (b,), what the generators are seeded with: :func:`view_hash` of the samples.
        first: how many numbers of each generator come before these.
        count: how many numbers.

    Returns:
        int64 (b,count), uniform over ``[0, 2**63)``; a row depends on its key alone.
    """
    place = torch.arange(first + 1, first + count + 1, device=key.device)
    return _mix(key[:, None] + _GOLDEN * place) & 0x7FFFFFFFFFFFFFFF


def _signed(value: int) -> Tensor:
    """An integer modulo 2**64, as torch's signed integers hold it."""
    return torch.tensor((int(value) + 2**63) % 2**64 - 2**63, dtype=torch.int64, device="cpu")


def _mix(x: Tensor) -> Tensor:
    """The finalizer of SplitMix64: a bijection of 64 bits in which each bit of ``x`` moves about
    half of the result's bits.
    """
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """``x >> bits`` with zeros from the left: torch's own shift of a signed integer copies the
    sign.
    """
    return (x >> bits) & ((1 << (64 - bits)) - 1)
