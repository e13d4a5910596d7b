"""Layouts of standard sets, as their authors or the Hugging Face hub publish them.

Sets that are one table of records need none of these (:mod:`pardalis.evaluate.tasks.records`).
Nothing is downloaded; the ``source`` of a shipped task says where its files come from.
"""

from pardalis.evaluate.tasks.standard.captions import CocoConfig, KarpathyConfig
from pardalis.evaluate.tasks.standard.prompts import DpgConfig
from pardalis.evaluate.tasks.standard.questions import MmmuConfig, ScienceQaConfig, VqaConfig
from pardalis.evaluate.tasks.standard.texts import (
    HellaSwagConfig,
    LabelledConfig,
    MathConfig,
    MmluConfig,
    WinoGrandeConfig,
)

STANDARD = (
    KarpathyConfig,
    CocoConfig,
    VqaConfig,
    ScienceQaConfig,
    MmmuConfig,
    DpgConfig,
    LabelledConfig,
    HellaSwagConfig,
    WinoGrandeConfig,
    MmluConfig,
    MathConfig,
)
