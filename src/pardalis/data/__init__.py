"""Data: documents become shards once, and shards become batches by index arithmetic."""

from pardalis.data.blocks import Share
from pardalis.data.cm3 import CM3
from pardalis.data.codes import decode_codes, encode_source
from pardalis.data.curriculum import Curriculum, CurriculumStage
from pardalis.data.images import AugmentationConfig, ImageBatch, ImageFeed
from pardalis.data.loader import Loader, Location, PairLoader, documents_of
from pardalis.data.mixture import Mixture
from pardalis.data.order import Order
from pardalis.data.packing import Packing, best_fit, split_long
from pardalis.data.prefetch import Prefetcher
from pardalis.data.prepare import Preparation, PrepareConfig, blocks_folder, prepare_source
from pardalis.data.report import Balance, PrepareReport, Rejected, Turns, balance
from pardalis.data.rules import (
    RULES,
    DocumentRule,
    Others,
    Removal,
    SourceRule,
    allow_classifier,
)
from pardalis.data.shards import Shards, ShardWriter
from pardalis.data.source import (
    SourceConfig,
    Survey,
    check_name,
    empty_part,
    read_first,
    read_source,
    survey,
    survey_parts,
)
from pardalis.data.split import WHOLE, Part, place_of, placed
from pardalis.data.through import Reading, read_through
from pardalis.data.transforms import (
    TRANSFORMS,
    LoadTransform,
    ModalityDropout,
    PairOrder,
    RunTransform,
    Transforms,
    WriteTransform,
    row_inputs,
    shard_inputs,
    special_of,
)
from pardalis.data.workers import ONE_WORKER, Workers
