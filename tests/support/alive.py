"""Memory of live tensors, measurable on any device."""

from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Alive(TorchDispatchMode):
    """Counts the bytes of gradients and of live results of operators.

    Under such a mode, autograd replaces a gradient instead of adding to it in place.

    Attributes:
        peak: the most live bytes after an operator, to within 1 %.
    """

    peak = 0

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._old = {StorageWeakRef(p.untyped_storage()).cdata for p in model.parameters()}
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}
        for p in model.parameters():
            if p.grad is not None:
                reference = StorageWeakRef(p.grad.untyped_storage())
                self._made[reference.cdata] = (reference, p.grad.nbytes)
        self._most = self.bytes  # upper bound of the live bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                reference = StorageWeakRef(storage)
                known = reference.cdata in self._old or reference.cdata in self._made
                if not known:
                    self._made[reference.cdata] = (reference, storage.nbytes())
                    self._most += storage.nbytes()
        if self._most > 1.01 * self.peak:
            self.peak = max(self.peak, self.bytes)
        return result

    @property
    def bytes(self) -> int:
        """Bytes alive now."""
        self._made = {k: made for k, made in self._made.items() if not made[0].expired()}
        self._most = sum(size for _, size in self._made.values())
        return self._most
