"""Adapters: what is trained beside a frozen model, and PEFT's folders for it."""

from pardalis.adapters.adapter import Adapter, adapter_of, base_fingerprint, merge
from pardalis.adapters.dora import DoRAConfig
from pardalis.adapters.install import PART, install, start, targets_of
from pardalis.adapters.kinds import ADAPTERS, AdapterConfig
from pardalis.adapters.linear import AdaptedLinear, Factor, FrozenLinear, LowRank
from pardalis.adapters.lora import LoRAConfig
from pardalis.adapters.peft import load_adapter, save_adapter
from pardalis.adapters.rows import row_ids, spans_of
