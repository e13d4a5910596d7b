"""The parts of a decoding step that gain by being compiled: the trunk and the sampler.

Each is compiled for one row and for any larger number of rows, whose tables may have any width, so
a few compilations serve all batches.
"""

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int32, Int64
from torch import Tensor

from pardalis.inference.cache import Rows, layers_of_table
from pardalis.inference.sampling import Choice, Needs, power_of_two, sample
from pardalis.model import Decoder

_logger = logging.getLogger(__name__)

BACKEND = "inductor"  # of torch.compile
_COMPILATIONS = 64  # of one function, in all engines of a process, before torch gives up
_PLAIN = Needs(draw=True, top_k=0, top_p=False)  # sorting and counting gain little


class Compiled:
    """The trunk and the sampler, compiled when first used; as they are where that fails.

    Args:
        hidden: what :meth:`hidden` is without a compiler.
    """

    def __init__(self, model: Decoder, hidden: Callable[[Rows, Tensor, Tensor], Tensor]) -> None:
        def trunk(
            ids: Int[Tensor, "R W"],
            columns: Int[Tensor, "R W"],
            table: Int[Tensor, "R C"],
            keys: Sequence[Float[Tensor, "slots K H"]],
            values: Sequence[Float[Tensor, "slots K H"]],
        ) -> Float[Tensor, "T D"]:
            layers = layers_of_table(keys, values, table, columns)
            return model.hidden(ids.view(1, -1), columns.view(1, -1), cache=layers)[0]

        on_gpu = model.embedding.weight.is_cuda
        options: dict[str, str | int | bool | Callable[..., object]] | None
        options = {"triton.cudagraphs": True} if on_gpu else None
        self._eager_hidden = hidden
        self._trunk, self._sample = (
            torch.compile(f, backend=BACKEND, fullgraph=True, dynamic=False, options=options)
            for f in (trunk, sample)
        )
        limit = max(torch._dynamo.config.recompile_limit, _COMPILATIONS)
        torch._dynamo.config.recompile_limit = limit
        self.works = True
        self._seen: set[Hashable] = set()

    def hidden(
        self, rows: Rows, ids: Int[Tensor, " T"], columns: Int[Tensor, " T"]
    ) -> Float[Tensor, "T D"]:
        """Return what the head reads of the newest ids of rows, equally many a row."""
        table, n_rows = rows.table, len(rows.rows)
        # Parts of larger tensors would be compiled anew for every place that they begin at.
        placed = [x.clone().view(n_rows, -1) for x in (ids, columns)]
        if table.is_cuda:  # a graph is recorded for every shape, so let there be few
            more = power_of_two(n_rows) - n_rows
            table = F.pad(table, (0, power_of_two(table.shape[1]) - table.shape[1], 0, more))
            placed = [F.pad(x, (0, 0, 0, more)) for x in placed]
        if self.works:
            with self._trying("trunk", (), [*placed, table], n_varying=2):
                hidden = self._trunk(*placed, table, rows.cache.keys, rows.cache.values)
                return hidden[: len(ids)]
        return self._eager_hidden(rows, ids, columns)

    def sample(
        self,
        logits: Float[Tensor, "B n"],
        allowed: tuple[Int[Tensor, " B"], Int[Tensor, " B"]] | None,
        choice: Choice,
        index: Int64[Tensor, " B"],
        ids: Int32[Tensor, " n"],
        needs: Needs,
    ) -> Int64[Tensor, " B"]:
        """Choose as :func:`pardalis.inference.sampling.sample` does."""
        if self.works and needs == _PLAIN:
            index = index.clone()
            numbers = [choice.temperature, choice.top_k, choice.top_p, choice.seed]
            rows = [logits, index, *numbers, *(allowed or ())]
            with self._trying("sampler", (logits.shape[1],), rows, n_varying=1):
                return self._sample(logits, allowed, choice, index, ids, needs)
        return sample(logits, allowed, choice, index, ids, needs)

    @contextmanager
    def _trying(
        self, what: str, constants: tuple[Hashable, ...], tensors: list[Tensor], n_varying: int
    ) -> Iterator[None]:
        """Give up compiling if the first call of its kind fails.

        Args:
            n_varying: leading dimensions of the tensors that calls of this kind differ in. Those of
                size 1 are a kind of their own.
        """
        single = tuple(size == 1 for t in tensors[:1] for size in t.shape[:n_varying])
        kind = (what, constants, single)
        if kind in self._seen:
            yield
            return
        for tensor in tensors:
            for dimension in range(n_varying):
                if tensor.shape[dimension] > 1:
                    torch._dynamo.mark_dynamic(tensor, dimension)
        n_rows = "one row" if single[0] else "several rows"
        _logger.info("Compiling the %s for %s; this takes a while, once.", what, n_rows)
        try:
            yield
            self._seen.add(kind)
        except RuntimeError as error:
            self.works = False
            _logger.warning("Decoding goes on uncompiled, since compiling failed: %s", error)
