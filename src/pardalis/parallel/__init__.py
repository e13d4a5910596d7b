"""Distributed training: processes, device mesh, sharding and failure reports."""

from pardalis.parallel.config import ParallelConfig
from pardalis.parallel.gradients import clip_gradients, gradient_norm
from pardalis.parallel.layout import Layout, Precision, layout_of
from pardalis.parallel.sharding import (
    fill,
    held_indices,
    local_part,
    parallelise,
    release,
    replicas,
    sum_over_replicas,
)
from pardalis.parallel.world import World, join
