"""llama.cpp as a peer of decoding.py, through the package llama-cpp-python.

It is optional: ``pip install llama-cpp-python`` compiles it for this processor in ten minutes. GGUF
files of the same weights are written here. llama.cpp's Chameleon never writes image tokens, and its
head always multiplies the whole vocabulary; for images it gets a model whose vocabulary is the
image tokens alone, without QK-norm, which does less than ours.
"""

import ctypes
import importlib.metadata
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from torch import Tensor

from pardalis.model import Decoder

Matrices = Literal["F32", "F16", "BF16", "Q8_0"]

# Forms of its context; the keys and values of the first are those of ours.
FORMS = {
    "f32 cache": {"flash_attn_type": 0, "type_k": 0, "type_v": 0},
    "flash attention, f16 cache": {"flash_attn_type": 1, "type_k": 1, "type_v": 1},
}
_NAMES = {
    "attention_norm": "attn_norm", "attention.q_proj": "attn_q", "attention.k_proj": "attn_k",
    "attention.v_proj": "attn_v", "attention.o_proj": "attn_output",
    "attention.q_norm": "attn_q_norm", "attention.k_norm": "attn_k_norm",
    "feed_forward_norm": "ffn_norm", "feed_forward.gate_proj": "ffn_gate",
    "feed_forward.up_proj": "ffn_up", "feed_forward.down_proj": "ffn_down",
}  # fmt: skip


def is_installed() -> bool:
    return importlib.util.find_spec("llama_cpp") is not None


def version() -> str | None:
    return importlib.metadata.version("llama_cpp_python") if is_installed() else None


def write_gguf(model: Decoder, path: Path, matrices: Matrices, vocabulary: range | None) -> None:
    """Write the weights of a pre-norm decoder.

    Args:
        vocabulary: the token ids that the file has, renumbered from 0, and no QK-norm; None: all.
    """
    config = model.config
    has_norms = vocabulary is None and config.attention.qk_norm.kind != "none"
    writer = gguf.GGUFWriter(path, "chameleon" if has_norms else "llama")
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.feed_forward.width)
    writer.add_head_count(config.attention.n_heads)
    writer.add_head_count_kv(config.attention.kv_heads)
    writer.add_key_length(config.d_head)
    writer.add_value_length(config.d_head)
    writer.add_layer_norm_rms_eps(config.norm.eps)
    writer.add_rope_dimension_count(config.d_head)
    writer.add_rope_freq_base(config.position.theta)
    writer.add_vocab_size(config.vocab_size if vocabulary is None else len(vocabulary))
    writer.add_tokenizer_model("none")
    kind = gguf.GGMLQuantizationType[matrices]
    for name, tensor in model.state_dict().items():
        short, end = _renamed(name)
        if short.endswith(("attn_q_norm", "attn_k_norm")) and not has_norms:
            continue
        if vocabulary is not None and short in ("token_embd", "output"):
            tensor = tensor[vocabulary.start : vocabulary.stop]
        if short.endswith(("attn_q", "attn_k")):
            tensor = _pairs(tensor, config.d_head)
        elif short.endswith(("attn_q_norm", "attn_k_norm")):
            heads = config.attention.n_heads if "_q_" in short else config.attention.kv_heads
            tensor = _pairs(tensor.expand(heads, -1).reshape(-1), config.d_head).view(heads, -1)
        values = tensor.detach().float().contiguous().numpy()
        if tensor.ndim == 1 or "_norm" in short:
            writer.add_tensor(f"{short}.{end}", values)
        else:
            stored = gguf.quantize(values, kind)
            writer.add_tensor(f"{short}.{end}", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _renamed(name: str) -> tuple[str, str]:
    rest, end = name.rsplit(".", 1)
    if rest in ("embedding", "trunk.norm", "head"):
        return {"embedding": "token_embd", "trunk.norm": "output_norm", "head": "output"}[rest], end
    _, _, layer, part = rest.split(".", 3)
    return f"blk.{layer}.{_NAMES[part]}", end


def _pairs(rows: Tensor, d_head: int) -> Tensor:
    """Reorder the rows of each head: from halves that rotate together to neighbours that do."""
    n = len(rows) // d_head
    return rows.view(n, 2, d_head // 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


class LlamaCpp:
    """A model in llama.cpp, and a context for a number of sequences of a length.

    Args:
        form: one of :data:`FORMS`.
    """

    def __init__(self, path: Path, form: str, sequences: int, length: int, threads: int) -> None:
        import llama_cpp

        self.c, self.sequences = llama_cpp, sequences
        self._silent = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p())
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        assert self.model, path
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = sequences * -(-length // 256) * 256
        context.n_batch = context.n_ubatch = 512
        context.n_seq_max = sequences
        context.n_threads = context.n_threads_batch = threads
        context.no_perf = True
        for name, value in FORMS[form].items():
            setattr(context, name, value)
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        assert self.context
        self.n_vocabulary = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self.model)
        )
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)

    def close(self) -> None:
        self.c.llama_batch_free(self.batch)
        self.c.llama_free(self.context)
        self.c.llama_model_free(self.model)

    def _decode(self, tokens: Sequence[tuple[int, int, int, bool]]) -> None:
        """Read tokens: id, position, sequence, and whether its logits are needed."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, needed) in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = needed
        code = self.c.llama_decode(self.context, batch)
        assert code == 0, code

    def read(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Read prompts, at most 512 tokens at once; return the rows of their last logits."""
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)
        tokens = [
            (token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        assert len(tokens) <= 512
        self._decode(tokens)
        return [row for row, token in enumerate(tokens) if token[3]]

    def run(
        self, prompts: Sequence[Sequence[int]], length: int,
        sampling: tuple[float, float] | None, seed: int,
    ) -> list[list[int]]:  # fmt: skip
        """Complete prompts of one length by so many tokens each.

        Args:
            sampling: temperature and top-p; None: nothing is sampled, and tokens are arbitrary.
        """
        generated: list[list[int]] = [[] for _ in prompts]
        with self._samplers(sampling, seed) as samplers:
            rows = self.read(prompts)
            position = len(prompts[0])
            for step in range(length):
                for sequence, row in enumerate(rows):
                    token = step % self.n_vocabulary
                    if samplers:
                        token = self.c.llama_sampler_sample(samplers[sequence], self.context, row)
                    generated[sequence].append(token)
                if step + 1 < length:
                    self._decode(
                        [(ids[-1], position + step, i, True) for i, ids in enumerate(generated)]
                    )
                    rows = list(range(len(prompts)))
        return generated

    def greedy(self, prompt: Sequence[int], length: int, allowed: range) -> list[int]:
        """Complete a prompt by the likeliest of the allowed ids."""
        [row], generated = self.read([prompt]), []
        for step in range(length):
            logits = np.ctypeslib.as_array(
                self.c.llama_get_logits_ith(self.context, row), (self.n_vocabulary,)
            )
            best = allowed.start + int(logits[allowed.start : allowed.stop].argmax())
            generated.append(best)
            self._decode([(best, len(prompt) + step, 0, True)])
            row = 0
        return generated

    @contextmanager
    def _samplers(self, sampling: tuple[float, float] | None, seed: int) -> Iterator[list[Any]]:
        if sampling is None:
            yield []
            return
        (temperature, top_p), made = sampling, []
        for sequence in range(self.sequences):
            chain = self.c.llama_sampler_chain_init(self.c.llama_sampler_chain_default_params())
            if top_p < 1:
                self.c.llama_sampler_chain_add(chain, self.c.llama_sampler_init_top_p(top_p, 1))
            if temperature != 1:
                self.c.llama_sampler_chain_add(chain, self.c.llama_sampler_init_temp(temperature))
            self.c.llama_sampler_chain_add(chain, self.c.llama_sampler_init_dist(seed + sequence))
            made.append(chain)
        try:
            yield made
        finally:
            for chain in made:
                self.c.llama_sampler_free(chain)
