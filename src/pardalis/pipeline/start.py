"""What a run takes over: the bundle that it trains further, or a trained image tokenizer.

The bundle's codec, the weights of its decoder and its context stay as they are, however short the
rows are that it now learns from. The recipe decides the dropout, and how images of prompts fit.
"""

import hashlib
from pathlib import Path

from pardalis import bundle as bundles
from pardalis import config as configs
from pardalis.errors import BundleError, ConfigError
from pardalis.model import ModelConfig
from pardalis.pipeline.recipe import Recipe, load_recipe
from pardalis.vq import ImageTokenizer

_RECIPE, _CONFIG = "recipe.toml", "config.json"
_ONE_OF = f"a bundle, of a run, or of an image tokenizer ({_CONFIG} and model.safetensors)"


def start_folder(recipe: Recipe) -> Path:
    """Return the folder of the bundle that a recipe starts from."""
    assert recipe.start_from is not None, "only asked of a recipe that starts from a bundle"
    return Path(recipe.start_from)


def start_config(recipe: Recipe) -> ModelConfig:
    """Return the shape of the decoder that is trained further; reads no weights.

    Raises:
        BundleError: there is no whole bundle.
        ConfigError: the rows are longer than the bundle's context, or the dropout is wrong.
    """
    assert recipe.prepare is not None, "a recipe that starts from a bundle has it"
    folder, row_tokens = start_folder(recipe), recipe.prepare.row_tokens
    config = bundles.model_config(folder, bundles.describe(folder))
    if row_tokens > config.context:
        raise ConfigError(
            f"prepare.row_tokens is {row_tokens}, but the model in {folder} has a context of "
            f"{config.context}; set prepare.row_tokens to at most that."
        )
    return configs.from_dict(
        ModelConfig, configs.to_dict(config) | dict(recipe.model or {}), "model."
    )


def check_given(recipe: Recipe, run: Path) -> None:
    """Find what is wrong with what a run is given before anything runs.

    Raises:
        BundleError, ConfigError: as :func:`start_config`; or the bundle is that of the run itself,
            or cannot draw what the recipe asks for.
    """
    if recipe.trains_image_tokenizer:
        return
    if recipe.start_from is not None:
        if start_folder(recipe).resolve() == (run / "bundle").resolve():
            raise ConfigError(
                f"start_from is {start_folder(recipe)}, which this run would replace by its own "
                "bundle; choose another --out, or another name for the recipe."
            )
        start_config(recipe)
    folder = image_tokenizer_folder(recipe, run)
    config = ImageTokenizer.load_config(folder)
    if not config.has_decoder and (recipe.sample.images or recipe.sample.pages):
        raise ConfigError(
            f"The image tokenizer {folder} has no decoder, so its model cannot draw; set "
            "sample.images and sample.pages to 0, or import it again with --image-tokenizer."
        )


def image_tokenizer_folder(recipe: Recipe, run: Path) -> Path:
    """Return the folder of the image tokenizer of a run: its own, or the one that it was given."""
    if recipe.start_from is not None:
        return start_folder(recipe) / bundles.IMAGE_TOKENIZER
    if recipe.image_tokenizer_from is not None:
        return image_tokenizer_in(Path(recipe.image_tokenizer_from))
    return run / "image_tokenizer" / "final"


def image_tokenizer_in(path: Path) -> Path:
    """Return the folder of an image tokenizer, given that or a bundle's or a run's.

    Raises:
        BundleError: there is none, or the run has not finished it.
        ConfigError: a run's recipe is wrong.
    """
    if not path.exists():
        raise BundleError(f"{path} does not exist; give the folder of {_ONE_OF}.")
    if (path / bundles.DESCRIPTION).is_file():
        return path / bundles.IMAGE_TOKENIZER
    if (path / _RECIPE).is_file():
        return _folder_of_run(path)
    if (path / _CONFIG).is_file():
        return path
    raise BundleError(f"{path} holds no image tokenizer; give the folder of {_ONE_OF}.")


def _folder_of_run(run: Path) -> Path:
    recipe = load_recipe(run / _RECIPE)
    folder = image_tokenizer_folder(recipe, run)
    if recipe.trains_image_tokenizer and not folder.exists():
        raise BundleError(
            f"The image tokenizer of {run} is not trained to its end, which writes {folder}; run "
            "'pardalis tokenizer train-image' with its recipe to go on."
        )
    return folder


def given_content(recipe: Recipe) -> list[list[str | int]]:
    """Return what tells that which a run is given apart from any other, without reading weights.

    A file of weights counts as changed when its size or time of change differs, a description or a
    text tokenizer when its content does. Every command asks this, and reading the 14 GB of a
    7-billion-parameter model takes nine seconds or more; images of sources are treated alike.
    The price: a copy that did not keep the times counts as another bundle. Licences are left out,
    since no number depends on them.
    """
    if recipe.start_from is not None:
        folder = start_folder(recipe)
    elif recipe.image_tokenizer_from is not None:
        folder = image_tokenizer_in(Path(recipe.image_tokenizer_from))
    else:
        return []
    found: list[list[str | int]] = []
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            found.append([name, hashlib.sha256(path.read_bytes()).hexdigest()])
        elif path.suffix == ".safetensors":
            status = path.stat()
            found.append([name, status.st_size, status.st_mtime_ns])
    return found


def net_files(recipe: Recipe) -> list[str]:
    """Return hashes of the files of feature nets that the losses of a recipe name.

    Raises:
        BundleError: a file cannot be read.
    """
    training = recipe.image_tokenizer_training
    if training is None:
        return []
    try:
        return [_hash(path) for net in training.nets for path in net.files]
    except OSError as error:
        raise BundleError(
            f"{error.filename} cannot be read ({error.strerror}); give the file of the net's "
            "weights."
        ) from error


def _hash(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
