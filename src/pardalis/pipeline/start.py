"""What a run starts from: the bundle that it trains further, or a trained image tokenizer.

The new bundle has the codec and the context of the old one, even if the training rows are shorter.
The recipe decides the dropout, and how images of prompts are made square.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pardalis import bundle as bundles
from pardalis import config as configs
from pardalis.errors import BundleError, ConfigError
from pardalis.model import config_of
from pardalis.pipeline.recipe import GivenModel, Recipe, load_recipe
from pardalis.vq import ImageTokenizer

_RECIPE, _CONFIG = "recipe.toml", "config.json"
_CONTENT = (".json", ".safetensors", ".jinja")  # files of a bundle that decide results
_OF_CODEC = ("vocabulary", "image_fit", "adds_bos")  # of a bundle's description
_ONE_OF = f"a bundle, a run, or an image tokenizer ({_CONFIG} and model.safetensors)"


def start_config(given: GivenModel, row_tokens: int) -> Any:
    """Return the config of the model in a bundle that is trained further; reads no weights.

    Raises:
        BundleError: there is no whole bundle.
        ConfigError: the rows are longer than the bundle's context, or the dropout is wrong.
    """
    folder = given.bundle
    config = bundles.model_config(folder, bundles.describe(folder))
    if row_tokens > config.context:
        raise ConfigError(
            f"prepare.row_tokens is {row_tokens}, but the model in {folder} has a context of "
            f"{config.context}; set prepare.row_tokens to at most that."
        )
    if given.dropout is None:
        return config
    return config_of(configs.to_dict(config) | {"dropout": given.dropout})


def codec_bundle(recipe: Recipe) -> Path | None:
    """Return the bundle whose tokenizers and vocabulary a run is given; None if it makes them.

    Raises:
        BundleError: it is a run that has none yet.
    """
    if recipe.tokenizers_from is not None:
        return bundles.bundle_folder(recipe.tokenizers_from)
    return recipe.start_from


def check_given(recipe: Recipe, run: Path) -> None:
    """Check the bundle or the image tokenizer that a run is given, before anything runs.

    Raises:
        BundleError, ConfigError: as :func:`start_config`. Or the bundle is that of the run itself,
            or it cannot generate the images of ``[sample]``.
    """
    if recipe.trains_image_tokenizer:
        return
    if recipe.start_from is not None:
        if recipe.start_from.resolve() == (run / "bundle").resolve():
            raise ConfigError(
                f"start_from is {recipe.start_from}, which this run would replace by its own "
                "bundle; run the recipe in another folder."
            )
        described = recipe.model_run
        if isinstance(described.model, GivenModel):
            start_config(described.model, described.prepare.row_tokens)
    elif (bundle := codec_bundle(recipe)) is not None:
        bundles.describe(bundle)
    folder = image_tokenizer_folder(recipe, run)
    config = ImageTokenizer.load_config(folder)
    if not config.has_decoder and (recipe.sample.images or recipe.sample.pages):
        raise ConfigError(
            f"The image tokenizer {folder} has no decoder, so its model cannot generate images; "
            "set sample.images and sample.pages to 0, or import it again with an image tokenizer."
        )


def image_tokenizer_folder(recipe: Recipe, run: Path) -> Path:
    """Return the folder of the image tokenizer of a run: its own one, or the given one."""
    if (bundle := codec_bundle(recipe)) is not None:
        return bundle / bundles.IMAGE_TOKENIZER
    if recipe.image_tokenizer_from is not None:
        return image_tokenizer_in(recipe.image_tokenizer_from)
    return run / "image_tokenizer" / "final"


def image_tokenizer_in(path: Path) -> Path:
    """Return the folder of the image tokenizer in a bundle, a run, or that folder itself.

    Raises:
        BundleError: there is none, or the run has not finished it.
        ConfigError: the recipe of the run is wrong.
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
            "the stage 'image_tokenizer' of that run."
        )
    return folder


def given_content(recipe: Recipe, of_file: Callable[[Path], str]) -> dict[str, str]:
    """Return the hashes of the files of the bundle or image tokenizer that a run is given.

    Licences are left out, since no result depends on them; of a bundle that gives tokenizers alone,
    so is what describes its model and how that was made.

    Args:
        of_file: returns the hash of a file's content. Every command needs those of the weights,
            and reading the 14 GB of a model of 7 billion parameters takes nine seconds or more, so
            this is one that remembers (:class:`pardalis.digests.Digests`).

    Raises:
        BundleError: a file cannot be read.
    """
    if (bundle := codec_bundle(recipe)) is not None:
        folder = bundle
    elif recipe.image_tokenizer_from is not None:
        folder = image_tokenizer_in(recipe.image_tokenizer_from)
    else:
        return {}
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix in _CONTENT]
    of_model = [folder / n for n in (bundles.MODEL, bundles.FOREIGN, bundles.DESCRIPTION)]
    if recipe.tokenizers_from is not None:
        paths = [path for path in paths if path not in of_model]
    found = {str(path.relative_to(folder)): _hash(path, of_file) for path in paths}
    if recipe.tokenizers_from is not None:
        described = bundles.describe(folder)
        read = {name: described[name] for name in _OF_CODEC if name in described}
        found[bundles.DESCRIPTION] = configs.fingerprint(read)
    return found


def net_files(recipe: Recipe, of_file: Callable[[Path], str]) -> list[str]:
    """Return hashes of the files of feature nets that the losses of a recipe name.

    Raises:
        BundleError: a file cannot be read.
    """
    training = recipe.image_tokenizer_training
    if training is None:
        return []
    return [_hash(path, of_file) for net in training.nets for path in net.files]


def _hash(path: Path, of_file: Callable[[Path], str]) -> str:
    try:
        return of_file(path)
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror or error}); give a file of weights that can."
        ) from error
