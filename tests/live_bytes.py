"""What a call takes in memory at its most, counted tensor by tensor: no matter what the allocator
or other processes do.
"""

import weakref

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """The most bytes of storages that were alive at once, of those made inside; and the largest of
    them.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = self.largest = 0
        self.seen = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        known = {t.untyped_storage() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if (
                isinstance(tensor, Tensor)
                and (storage := tensor.untyped_storage()) not in known
                and storage not in self.seen
            ):
                self.seen[storage] = None
                self.now += storage.nbytes()
                self.largest = max(self.largest, storage.nbytes())
                weakref.finalize(storage, self.free, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def free(self, size: int):
        self.now -= size
