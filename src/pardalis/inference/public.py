"""The public names of :mod:`pardalis.inference`."""

from pardalis.inference.api import (
    KeptEngine,
    complete,
    engine_config_for,
    generate,
    generate_many,
    score,
)
from pardalis.inference.candidates import POOLS, SCORERS, Candidate, generate_ranked
from pardalis.inference.config import EngineConfig
from pardalis.inference.driver import EngineDriver, Stream
from pardalis.inference.engine import Completion, Engine
from pardalis.inference.events import (
    DocumentsRetrieved,
    Event,
    Finished,
    ImageBegun,
    ImageDone,
    ImageRows,
    LogProbs,
    TextDelta,
    Usage,
)
from pardalis.inference.generation import (
    Contrastive,
    GenerationConfig,
    GenerationMode,
    Guidance,
    ImageGuidance,
    SamplingConfig,
)
from pardalis.inference.infilling import Infilling, Mask, infill, infill_many
from pardalis.inference.log_probs import Score, TokenLogProb
from pardalis.inference.prompt import to_request, to_requests, to_score_requests
from pardalis.inference.prompt_file import PromptFile, Summary
from pardalis.inference.prompt_parts import Part, Prompt, to_document
from pardalis.inference.reference import generate_reference
from pardalis.inference.request import Request, ScoreRequest
from pardalis.inference.response import Response
from pardalis.inference.token_loop import Progress, TokenLoop, generate_ids
