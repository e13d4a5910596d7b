"""Training of an image tokenizer on several ranks, run by torchrun or in the test's process.

torchrun --nproc-per-node 2 tests/support/ranks.py FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from pardalis.documents import Image
from pardalis.parallel import World, join
from pardalis.train import (
    AdversarialConfig,
    ImageTokenizerTask,
    ImageTokenizerTrainConfig,
    LoopConfig,
    WarmupCosineConfig,
    train,
)
from pardalis.vq import QUANTIZERS, ImageTokenizerConfig
from pardalis.vq.discriminator import StyleGAN2Config

STEPS = 6

# Not included, since they use the images of one process only: the batch norms of the patch
# discriminator, and the entropy term of ibq.
VARIANTS = {
    "ema": {},
    "vq": {},
    "l2": {"ema_decay": 0.9},
    "simvq": {
        "adversarial": AdversarialConfig(
            discriminator=StyleGAN2Config(channels=8),
            form="hinge",
            adaptive=True,
            start_step=1,
            r1_weight=10.0,
            r1_every=2,
        )
    },
}


def task(variant: str, world: World) -> ImageTokenizerTask:
    generator = np.random.default_rng(0)
    images = [
        Image(PIL.Image.fromarray(generator.integers(0, 255, (4, 4, 3), np.uint8)).resize((32, 32)))
        for _ in range(40)
    ]
    shape = ImageTokenizerConfig(
        resolution=32, patch_size=4, channels=16, channel_multipliers=(1, 2), n_res_blocks=1,
        norm_groups=0, z_channels=16, code_width=8, n_codes=32,
        quantizer=QUANTIZERS[variant](),
    )  # fmt: skip
    config = ImageTokenizerTrainConfig(
        batch_images=8,
        # With 8 images in the average use, a code that one batch does not use is soon dead.
        codebook_decay=0.5,
        schedule=WarmupCosineConfig(learning_rate=1e-3, warmup_steps=2),
        **VARIANTS.get(variant, {}),
    )
    return ImageTokenizerTask(
        shape, config, images[:30], images[30:], total_steps=STEPS, world=world
    )


def losses(variant: str, world: World) -> list[dict[str, float]]:
    """Return the metrics of each step, averaged over all processes, and the evaluation."""
    made = task(variant, world)
    lines = []
    for step in range(STEPS):
        measured = {name: float(value) for name, value in made.step(step).items()}
        lines.append(dict(zip(measured, world.means(list(measured.values())), strict=True)))
    return [*lines, made.evaluate()]


def one_held_out(world: World) -> dict[str, float]:
    """Evaluate fewer images than there are processes."""
    made = task("fsq", world)
    made.heldout = made.heldout[:1]
    return made.evaluate()


def train_part(folder: Path, steps: int, world: World) -> dict[str, float]:
    config = LoopConfig(steps=steps, save_every=2, report_every=2)
    return dict(train(task("ema", world), folder, config, world=world))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with join() as world:
        found = {variant: losses(variant, world) for variant in VARIANTS}
        train_part(folder / "run", 4, world)
        gathered = world.gather(torch.tensor([[float(world.rank)]])).flatten().tolist()
        facts = {
            "ranks": gathered,
            "any": world.any(world.rank == 1),
            "message": world.broadcast("go"),
        }
        facts["evaluated"] = one_held_out(world)
        if world.is_first:
            (folder / "found.json").write_text(json.dumps(found | {"facts": facts}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
