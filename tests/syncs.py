"""What a step reads back from the device, counted on a CPU too."""

from torch.utils._python_dispatch import TorchDispatchMode


class Syncs(TorchDispatchMode):
    """Notes every operation whose result the host waits for: ``found``, ``(operation, shape)``."""

    found = ()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in (
            "_local_scalar_dense",
            "nonzero",
            "is_nonzero",
            "equal",
            "masked_select",
        ):
            self.found = (*self.found, (function, args[0].shape))
        return function(*args, **(kwargs or {}))
