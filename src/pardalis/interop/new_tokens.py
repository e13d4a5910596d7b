"""New special tokens and modalities for a model that exists, such as one to be trained further."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from pardalis.bundle import Bundle
from pardalis.codec import Codec
from pardalis.interop.llama import NewRows
from pardalis.model import build
from pardalis.parameters import specs_of


def extend_vocabulary(
    bundle: Bundle,
    special: Iterable[str] = (),
    modalities: Mapping[str, int] | None = None,
    *,
    writable: Iterable[str] = (),
    new_rows: NewRows | None = None,
) -> Bundle:
    """Return a bundle with more tokens; save it, and a recipe's ``start_from`` may name it.

    Every id keeps its meaning, and every parameter its values. The matrices that have a vector for
    each token get one for each id beyond the old vocabulary; a special id that was unused before
    keeps its own.

    Args:
        bundle: stays as it is; parameters that do not grow are shared.
        special: names of new special ids.
        modalities: number of ids of new modalities, by name.
        writable: those of the new special ids that the model may generate.
        new_rows: initial values of new vectors (default: near the mean of the old ones).

    Raises:
        ConfigError: as :meth:`pardalis.tokens.Vocabulary.extended`.
    """
    new_rows, old, codec = new_rows or NewRows(), bundle.model, bundle.codec
    vocabulary = codec.vocabulary.extended(special, modalities, writable)
    n_new = vocabulary.size - codec.vocabulary.size
    state = old.state_dict()
    for name, spec in specs_of(old).items():
        if n_new and spec.split == "vocabulary":
            rows = new_rows.sample(name, state[name].cpu(), n_new, old.config.init.std)
            state[name] = torch.cat([state[name], rows.to(state[name].device)])
    with torch.device("meta"):
        model = build(replace(old.config, vocab_size=vocabulary.size))
    model.load_state_dict(state, assign=True)
    extended = Codec(
        vocabulary,
        codec.text_tokenizer,
        codec.image_tokenizer,
        codec.image_fit,
        chat_template=None if codec.chat_template is None else codec.chat_template.source,
        adds_bos=codec.adds_bos,
    )
    return replace(bundle, model=model.train(old.training), codec=extended)
