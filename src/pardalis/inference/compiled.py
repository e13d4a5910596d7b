"""The compiled parts of a decoding step: the trunk and the sampler.

Each is compiled once for a single sequence and once for any larger number, with tables of any
width, so that a few compilations serve all batches.
"""

import logging
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int32, Int64
from torch import Tensor

from pardalis.inference.cache import PassLayout, gathered_layers
from pardalis.inference.sampling import SamplerNeeds, SamplingTensors, power_of_two, sample
from pardalis.model import LanguageModel

_logger = logging.getLogger(__name__)

BACKEND = "inductor"  # backend of torch.compile
_RECOMPILE_LIMIT = 64  # per function, for all engines of a process
# The only sampling that is compiled; the sorting and counting of the others gain little.
_COMPILED_NEEDS = SamplerNeeds(random=True, top_k=0, top_p=False)


class CompiledSteps:
    """The trunk and the sampler, compiled on first use; eager if compilation fails."""

    def __init__(
        self, model: LanguageModel, eager_hidden: Callable[[PassLayout, Tensor, Tensor], Tensor]
    ) -> None:
        def trunk(
            ids: Int[Tensor, "B W"],
            positions: Int[Tensor, "B W"],
            table: Int[Tensor, "B S"],
            keys: Sequence[Float[Tensor, "entries K H"]],
            values: Sequence[Float[Tensor, "entries K H"]],
        ) -> Float[Tensor, "T D"]:
            layers = gathered_layers(keys, values, table, positions)
            return self.model.hidden(ids.view(1, -1), positions.view(1, -1), cache=layers)[0]

        self.model = model
        on_gpu = model.device.type == "cuda"
        options: dict[str, str | int | bool | Callable[..., object]] | None
        options = {"triton.cudagraphs": True} if on_gpu else None
        self._eager_hidden = eager_hidden
        self._trunk, self._sample = (
            torch.compile(f, backend=BACKEND, fullgraph=True, dynamic=False, options=options)
            for f in (trunk, sample)
        )
        limit = max(torch._dynamo.config.recompile_limit, _RECOMPILE_LIMIT)
        torch._dynamo.config.recompile_limit = limit
        self.works = True
        self._compiled: set[Hashable] = set()

    def hidden(
        self, layout: PassLayout, ids: Int[Tensor, " T"], positions: Int[Tensor, " T"]
    ) -> Float[Tensor, "T D"]:
        """Return the hidden states of the newest tokens, as many of each sequence."""
        table, n_sequences = layout.table, len(layout.parts)
        # A view would be recompiled for every storage offset.
        inputs = [x.clone().view(n_sequences, -1) for x in (ids, positions)]
        if table.is_cuda:  # rounded up, since a CUDA graph is recorded for every shape
            padding = power_of_two(n_sequences) - n_sequences
            table = F.pad(table, (0, power_of_two(table.shape[1]) - table.shape[1], 0, padding))
            inputs = [F.pad(x, (0, 0, 0, padding)) for x in inputs]
        if self.works:
            with self._compiling("trunk", (), [*inputs, table], n_dynamic=2):
                hidden = self._trunk(*inputs, table, layout.cache.keys, layout.cache.values)
                return hidden[: len(ids)]
        return self._eager_hidden(layout, ids, positions)

    def sample(
        self,
        logits: Float[Tensor, "B n"],
        allowed: tuple[Int[Tensor, " B"], Int[Tensor, " B"]] | None,
        sampling: SamplingTensors,
        index: Int64[Tensor, " B"],
        ids: Int32[Tensor, " n"],
        needs: SamplerNeeds,
    ) -> Int64[Tensor, " B"]:
        """Do the same as :func:`pardalis.inference.sampling.sample`."""
        if self.works and needs == _COMPILED_NEEDS:
            index = index.clone()
            numbers = [sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed]
            inputs = [logits, index, *numbers, *(allowed or ())]
            with self._compiling("sampler", (logits.shape[1],), inputs, n_dynamic=1):
                return self._sample(logits, allowed, sampling, index, ids, needs)
        return sample(logits, allowed, sampling, index, ids, needs)

    @contextmanager
    def _compiling(
        self, what: str, constants: tuple[Hashable, ...], inputs: list[Tensor], n_dynamic: int
    ) -> Iterator[None]:
        """Stop using compiled code if the first call with such inputs fails.

        Args:
            constants: sizes for which the function is compiled anew.
            n_dynamic: leading dimensions of the inputs that may vary between calls; size 1 is
                compiled separately.
        """
        single = tuple(size == 1 for x in inputs[:1] for size in x.shape[:n_dynamic])
        variant = (what, constants, single)
        if variant in self._compiled:
            yield
            return
        for x in inputs:
            for dimension in range(n_dynamic):
                if x.shape[dimension] > 1:
                    torch._dynamo.mark_dynamic(x, dimension)
        for_what = "one sequence" if single[0] else "several sequences"
        _logger.info("Compiling the %s for %s; this takes a while, once.", what, for_what)
        try:
            yield
            self._compiled.add(variant)
        except RuntimeError as error:
            self.works = False
            _logger.warning("Decoding continues without compilation, which failed: %s", error)
