"""The image tokenizer: images to grids of codes and back."""

from pardalis.vq.codebook import CodebookTrainer, codebook_use, perplexity
from pardalis.vq.config import (
    PRESETS,
    QUANTIZERS,
    EMAConfig,
    FSQConfig,
    IBQConfig,
    ImageTokenizerConfig,
    L2Config,
    QuantizerConfig,
    SimVQConfig,
    VQConfig,
    chameleon,
    tiny,
)
from pardalis.vq.init import initialise
from pardalis.vq.losses import psnr
from pardalis.vq.preprocessing import (
    ImageFit,
    Placement,
    open_square,
    place_in_square,
    to_pixels,
    to_square,
)
from pardalis.vq.quantizer import Quantizer, VectorQuantizer, build_quantizer, nearest_codes
from pardalis.vq.stream import encode_stream
from pardalis.vq.tokenizer import ImageTokenizer
