"""Small tokenizers of imported models with chat templates of the public formats.

The templates are written anew after the formats that are published with such models.
"""

import json
from functools import cache

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from pardalis.codec import Codec
from pardalis.interop.vocabulary import extend_text_vocabulary
from pardalis.tokens import TextTokenizer
from pardalis.vq import ImageTokenizer

CORPUS = [
    "An owl sat on the old oak. system user assistant",
    "The owl, the cat and the fox. You are a helpful assistant.\n",
    "A fox ran. 3 < 4\n\n[INST] <|user|> What is it? I do not know.",
] * 4

CHATML = """\
{%- for message in messages %}
{%- if loop.first and message.role != 'system' %}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

QWEN_3 = """\
{%- set last = namespace(at=0) %}
{%- for message in messages %}
  {%- if message.role == 'user' %}{% set last.at = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
  {%- set content = message.content %}
  {%- if message.role == 'assistant' %}
    {%- set thought = '' %}
    {%- if '</think>' in content %}
      {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
      {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if loop.index0 > last.at and thought %}
      {{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- content }}
  {%- else %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ content }}
  {%- endif %}
  {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA_2 = """\
{%- if messages[0]['role'] == 'system' %}
{%- set system, turns = messages[0]['content'], messages[1:] %}
{%- else %}{% set system, turns = false, messages %}{% endif %}
{%- for message in turns %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Roles must alternate, beginning with the user.') }}
{%- endif %}
{%- set content = message['content'] %}
{%- if loop.index0 == 0 and system %}
{%- set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + content %}
{%- endif %}
{%- if message['role'] == 'user' %}
{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- else %}
{{- ' ' + content.strip() + ' ' + eos_token }}
{%- endif %}
{%- endfor %}"""

LLAMA_3 = """\
{{- bos_token }}
{%- if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif %}
{%- for message in messages %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim }}
{{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

MISTRAL = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}
{%- set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}
{%- for message in turns %}
{%- if message.role == 'user' %}
{%- if loop.last and system is defined %}
{{- '[INST] ' + system + '\\n\\n' + message.content + '[/INST]' }}
{%- else %}{{ '[INST] ' + message.content + '[/INST]' }}{% endif %}
{%- else %}{{ ' ' + message.content | trim + eos_token }}{% endif %}
{%- endfor %}"""

ZEPHYR = """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% else %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

PHI = """\
{% for message in messages %}
{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""

GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{- raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

PARTS = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}{{ message['content'] }}{% else %}
{%- for part in message['content'] %}
{%- if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- else %}{{ part['text'] }}{% endif %}
{%- endfor %}{% endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

IMAGES_FIRST = """\
{%- for message in messages %}
{{- message['role'].upper() + ': ' }}
{%- for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}
{%- endfor %}
{%- for part in message['content'] | selectattr('type', 'equalto', 'text') %}
{{- part['text'] + ' ' }}
{%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""


def _sentencepiece(special: list[str], metaspace: bool) -> Tokenizer:
    """Byte fallback, and a space before a text: before each (Llama 2) or the first (Mistral)."""
    prepend = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    plain = Tokenizer(models.BPE())
    plain.normalizer = normalizers.Sequence(prepend)
    plain.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    learnt = json.loads(plain.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learnt["vocab"]]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={name: i for i, name in enumerate(names)},
            merges=[tuple(merge) for merge in learnt["merges"]],
            unk_token="<unk>", fuse_unk=True, byte_fallback=True,
        )
    )  # fmt: skip
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = plain.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    tokens = ["<unk>", "<s>", "</s>", *special]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in tokens])
    return tokenizer


def _byte_level(special: list[str], rstrip: tuple[str, ...] = ()) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}{1,3}|\s+|[^\s\p{L}\p{N}]+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=330, show_progress=False, initial_alphabet=alphabet, special_tokens=special
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False, rstrip=name in rstrip) for name in special]
    )
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>")])
    return tokenizer


SMOL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
L3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
      "<|eot_id|>"]  # fmt: skip
VISION = [*SMOL, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
PHI_3 = ["<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
TURNS = ["<start_of_turn>", "<end_of_turn>"]

# name: template, tokenizer, its bos, its eos, whether documents begin with bos
FORMATS = {
    "ChatML": (CHATML, lambda: _byte_level(SMOL), "<|im_start|>", "<|im_end|>", False),
    "Qwen 3": (QWEN_3, lambda: _byte_level(SMOL), "<|endoftext|>", "<|im_end|>", False),
    "Llama 2": (LLAMA_2, lambda: _sentencepiece([], False), "<s>", "</s>", True),
    "Llama 3": (LLAMA_3, lambda: _byte_level(L3), "<|begin_of_text|>", "<|end_of_text|>", True),
    "Mistral": (MISTRAL, lambda: _sentencepiece(["[INST]", "[/INST]"], True), "<s>", "</s>", True),
    "Zephyr": (ZEPHYR, lambda: _sentencepiece([], False), "<s>", "</s>", True),
    "Phi 3": (
        PHI, lambda: _byte_level(PHI_3, ("<|end|>", "<|user|>")), "<s>", "<|endoftext|>", False
    ),
    "Gemma": (GEMMA, lambda: _sentencepiece(TURNS, True), "<s>", "</s>", True),
    "parts": (PARTS, lambda: _byte_level(VISION), "<|endoftext|>", "<|im_end|>", False),
    "images first": (IMAGES_FIRST, lambda: _byte_level(SMOL), "<|im_start|>", "<|im_end|>", False),
}  # fmt: skip


@cache
def tokenizer_of(name: str) -> Tokenizer:
    return FORMATS[name][1]()


def codec_of(name: str, image_tokenizer: ImageTokenizer, template: str | None = None) -> Codec:
    """Return the codec of an imported model with images behind its own ids."""
    source, _, bos, eos, adds_bos = FORMATS[name]
    content = tokenizer_of(name).to_str()
    tokenizer = Tokenizer.from_str(content)
    singles = {"bos": tokenizer.token_to_id(bos), "eos": tokenizer.token_to_id(eos)}
    vocabulary = extend_text_vocabulary(
        content, tokenizer.get_vocab_size(), singles, image_tokenizer.config.n_codes, name
    )
    text = TextTokenizer(
        tokenizer,
        [vocabulary.foreign_ids[i] for i in vocabulary.text],
        vocabulary.foreign_ids[vocabulary.unk_id],
    )
    return Codec(
        vocabulary, text, image_tokenizer, chat_template=template or source, adds_bos=adds_bos
    )
