"""Training: the loop, its checkpoints and metrics, and one task per kind of model."""

from pardalis.train.adversary import AdversarialConfig
from pardalis.train.alarms import Alarm, AlarmConfig, Alarms
from pardalis.train.decoder_task import DecoderTask, DecoderTrainConfig
from pardalis.train.divergence import Diverged
from pardalis.train.image_tokenizer import (
    ImageTokenizerTask,
    ImageTokenizerTrainConfig,
    PerceptualConfig,
    RegionConfig,
)
from pardalis.train.loop import Interrupted, LoopConfig, Measurement, train
from pardalis.train.metrics import Line, read_metrics
from pardalis.train.optimizer import AdamWConfig, MuonConfig, OptimizerConfig
from pardalis.train.schedule import (
    ConstantConfig,
    ConstantThenDecayConfig,
    ScheduleConfig,
    WarmupCosineConfig,
    WarmupExponentialConfig,
)
from pardalis.train.task import Task
