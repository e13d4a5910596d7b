"""Import and export: Chameleon's two layouts, text-only models, GGUF files, image tokenizers.

    Hugging Face's Chameleon ─┐                     ┌─ Hugging Face's Chameleon
    Chameleon's release       ├─►  ForeignModel  ───┼─ Chameleon's release
    a text-only Llama or Qwen │   no weights read   ├─ Llama, Qwen2 or Qwen3
    the same as a GGUF file   │                     ├─ the same as a GGUF file
    bundle                   ─┘                     └─ bundle

One table of tensor names serves all directions (:mod:`.names`). Tensors are read one at a time,
while they are written (:mod:`.tensors`).
"""

from pardalis.interop.convert import (
    export_model,
    import_model,
    open_image_tokenizer,
    read_model,
)
from pardalis.interop.huggingface import write_chameleon
from pardalis.interop.llama import NewRows
from pardalis.interop.meta import write_meta
from pardalis.interop.model import ForeignModel, write_bundle
from pardalis.interop.new_tokens import extend_vocabulary
from pardalis.interop.vqgan import import_image_tokenizer
