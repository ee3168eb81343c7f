"""What metadata say of how something was made => the command that makes it again, where there is one."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from latent_mixup.hub.terms import is_test_part, known_data_set

if TYPE_CHECKING:
    from latent_mixup.bank import LatentBank
    from latent_mixup.encoders import Encoder
    from latent_mixup.generators import Generator

DATA_ROOT = "data"  # where the commands look for a data set
_RECIPES = {  # the settings of each recipe that the command line takes
    "CompactGenerator": ("compact", "CompactRecipe", ("steps", "batch_size", "seed")),
    "DCGAN": ("dcgan", "DCGANRecipe", ("epochs", "batch_size", "seed")),
    "VAE": ("vae", "VAERecipe", ("steps", "batch_size", "seed")),
    "StyleGAN2": ("stylegan2", "StyleGAN2Recipe", ("steps", "batch_size", "seed")),
    "MLPEncoder": ("mlp", "EncoderRecipe", ("steps", "batch_size", "lr", "seed")),
    "ReStyleEncoder": ("restyle", "EncoderRecipe", ("steps", "batch_size", "lr", "seed")),
}
LINE_WIDTH = 96
_INVERSION = ("steps", "restarts", "optimizer", "lr", "tolerance", "draws", "batch_size", "seed")
_RGB_CHANNELS = [32, 64]  # of the VAE that the command line trains on RGB images
_ADA_TARGET = 0.6  # what --ada means


def generator_command(generator: Generator) -> str | None:
    """``latent-mixup train-generator`` or ``convert``; None where the command line cannot say how it was made."""
    if (converted := _convert(generator.metadata.get("source"), "generator")) is not None:
        return converted
    data_set = known_data_set(generator.metadata.get("dataset"))
    settings = _recipe(generator)
    network = _network(generator)
    if data_set is None or settings is None or network is None:
        return None
    arch, options = settings
    return _command(
        "latent-mixup train-generator", {"arch": arch, **_data(data_set), "out": "generator", **options, **network}
    )


def encoder_command(encoder: Encoder, generator: str) -> str | None:
    """``latent-mixup train-encoder`` for the generator of that name; None where the command line cannot say it."""
    stated = encoder.metadata.get("dataset")
    data_set, settings = known_data_set(stated), _recipe(encoder)
    if settings is None or (stated is not None and data_set is None):
        return None
    arch, options = settings
    arguments = encoder.arguments()
    network: dict[str, Any] = {name: arguments[name] for name in ("backbone", "passes") if name in arguments}
    network |= {name: ",".join(map(str, arguments[name])) for name in ("channels", "layers") if arguments.get(name)}
    if arch == "mlp" and not _is_default(type(encoder), arguments, ("widths",)):
        return None
    if arch == "restyle":
        network["loss"] = _loss(encoder.metadata.get("loss"))
        if network["loss"] is None:
            return None
    data = _data(data_set) if data_set else {}
    return _command(
        f"latent-mixup train-encoder {shlex.quote(generator)}",
        {"arch": arch, **data, "out": "encoder", **options, **network},
    )


def bank_command(bank: LatentBank, generator: str) -> str | None:
    """``latent-mixup invert`` or ``convert``; None where the command line cannot say how it was made."""
    inversion, stated = bank.metadata.get("inversion"), bank.metadata.get("dataset")
    data_set = known_data_set(stated)
    if not isinstance(inversion, dict):
        return None
    if (converted := _convert(inversion.get("source"), "bank")) is not None:
        return converted
    loss = _loss(inversion.get("loss"))
    digest = str(bank.generator_digest)[:12]
    own_start = f"({digest})" in str(inversion.get("start")) or " draws" in str(inversion.get("start"))
    known = {*_INVERSION, "start", "loss", "target"}
    if data_set is None or loss is None or not own_start or set(inversion) != known or inversion["target"] is not None:
        return None
    test = {"test": True} if is_test_part(stated) else {}
    return _command(
        f"latent-mixup invert {shlex.quote(generator)}",
        {**_data(data_set), **test, "out": "bank", "loss": loss, **{name: inversion[name] for name in _INVERSION}},
    )


def settings_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What metadata say of how something was made: its recipe, or the settings of its inversion."""
    for key in ("recipe", "inversion"):
        if isinstance(metadata.get(key), dict):
            return {name: value for name, value in metadata[key].items() if name not in ("source", "licence")}
    return {}


def _convert(source: object, out: str) -> str | None:
    file = source.get("file") if isinstance(source, dict) else None
    if not isinstance(file, str) or not file.isprintable() or "`" in file:
        return None
    return f"latent-mixup convert {shlex.quote(file)} {out}"


def _recipe(network: Generator | Encoder) -> tuple[str, dict[str, Any]] | None:
    """The architecture's name, and the settings that the command line takes; the others have to be the defaults."""
    found, recipe = _RECIPES.get(type(network).__name__), network.metadata.get("recipe")
    if found is None or not isinstance(recipe, dict):
        return None
    arch, recipe_name, named = found
    from latent_mixup import training  # which stands above this module: it knows what a command leaves unsaid

    defaults = asdict(getattr(training, recipe_name)())
    if set(recipe) != set(defaults):
        return None
    switches = {"ada": True} if arch == "stylegan2" and recipe["ada_target"] == _ADA_TARGET else {}
    unsaid = set(defaults) - set(named) - ({"ada_target"} if switches else set())
    if any(recipe[name] != defaults[name] for name in unsaid):
        return None
    return arch, {**{name: recipe[name] for name in named}, **switches}


def _network(generator: Generator) -> dict[str, Any] | None:
    """The options that size a network; None where an argument that has none is not what training gives it."""
    arguments: dict[str, Any] = generator.arguments()
    named = {"z_dim": arguments.get("z_dim")}
    free = {"z_dim", "img_channels", "img_resolution"}  # the last two are those of the images
    if "channel_base" in arguments:
        named |= {name: arguments[name] for name in ("channel_base", "channel_max")}
        named |= {"conditional": True} if arguments["c_dim"] else {}
        free |= {"w_dim", "c_dim", *named}
        if arguments["w_dim"] != arguments["z_dim"]:
            return None
    elif type(generator).__name__ == "VAE" and arguments["img_channels"] == 3:
        free.add("channels")
        if list(arguments["channels"]) != _RGB_CHANNELS:
            return None
    return named if _is_default(type(generator), arguments, set(arguments) - free) else None


def _is_default(cls: Callable[..., Any], arguments: Mapping[str, Any], names: Sequence[str] | set[str]) -> bool:
    defaults = {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}
    return all(_plain(arguments[name]) == _plain(defaults.get(name)) for name in names)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _loss(said: object) -> str | None:
    """The value of ``--loss`` for a loss as metadata have it."""
    if said == "pixel_mse":
        return "pixels"
    return "features" if isinstance(said, str) and said.startswith("features + 1 mse (") else None


def _data(data_set: str) -> dict[str, Any]:
    return {"dataset": data_set, "data_root": DATA_ROOT}


def _command(start: str, options: Mapping[str, Any]) -> str:
    """A command over several lines: an option with True is a switch."""
    texts = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {shlex.quote(str(value))}")
        for name, value in options.items()
    ]
    lines, line = list[str](), start
    for text in texts:
        if len(line) + len(text) > LINE_WIDTH:
            lines, line = [*lines, line], f"    {text}"
        else:
            line = f"{line} {text}"
    return " \\\n".join([*lines, line])
