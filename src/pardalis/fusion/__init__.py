"""Two bundles become one: weights are averaged, blocks joined, or trunks attend to each other.

    text parent  ─┐   fit?    united      a kind of merge:              one bundle,
                  ├─► or ──►  vocabulary ─► config, and each tensor ──► tensor by
    image parent ─┘  refused  (option)      from those of the parents   tensor

A kind is a config with ``merged`` and a line of the table (:mod:`.kinds`).
"""

from pardalis.fusion.averages import SlerpConfig, TaskArithmeticConfig, UniformConfig
from pardalis.fusion.cross import CrossMergeConfig
from pardalis.fusion.kinds import MERGES, MergeConfig
from pardalis.fusion.parents import Merged, Parent
from pardalis.fusion.width import WidthConfig
from pardalis.fusion.write import merge
