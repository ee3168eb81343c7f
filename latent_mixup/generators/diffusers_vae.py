"""The autoencoders of diffusers as generators: codes for images of any kind, without training anything.

An ``AutoencoderKL`` (the VAE of a Stable Diffusion) or an ``AutoencoderTiny`` (its distilled TAESD) encodes an image in
one pass. What is read are a config and a file of safetensors, by the same rules as our own networks: every name, dtype
and shape is compared before anything is allocated, and no pickle is opened.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_mixup import files, hub
from latent_mixup.generators.base import Generator, sides
from latent_mixup.networks import STORED_DTYPES, needed_weights, read_weights, unallocated

CLASSES = ("AutoencoderKL", "AutoencoderTiny")
if TYPE_CHECKING:
    from typing_extensions import Unpack

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
PICKLES = "diffusion_pytorch_model*.bin"
READ_DTYPES = {**STORED_DTYPES, "BF16": torch.bfloat16}
DERIVED = {"AutoencoderKL": set[str](), "AutoencoderTiny": {"block_out_channels"}}  # in configs; no arguments
FORMER_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # in files of before 2023
Resolution: TypeAlias = int | tuple[int, int]
MAX_STAGES, MAX_LAYERS, MAX_ENTRIES = 8, 64, 1024  # a config of somebody else may ask for any number


class DiffusersVAE(Generator):
    """An autoencoder of diffusers for images of one size; needs the extra ``diffusers``.

    A code is ``[C, h, w]``, the mode of the encoder's distribution, in the units in which the autoencoder's diffusion
    model sees it: shifted and scaled to about unit variance. Codes are mixed by ``slerp``: two of them are nearly
    orthogonal, so that halfway on the straight line a code is 0.7 times as long, and decodes to a faint image. Codes of
    ``sample_latents`` are about as large as those of images, but decode to texture: this is no generative model.

    Images whose size is not a multiple of the autoencoder's factor are padded by their edge pixels, evenly on both
    sides, and decoded images are cropped. Grey images go into an autoencoder of RGB as three equal channels, and come
    out as the mean of three. Half precision: ``LatentMixupLoader(autocast=torch.bfloat16)``, or ``torch.autocast``
    around any call; codes and images are float32 all the same. (In float16 some of these networks overflow.)

    Args:
        autoencoder: ``"AutoencoderKL"`` or ``"AutoencoderTiny"``.
        config: The arguments of that class, as diffusers has them in a ``config.json``.
        img_resolution: Height and width of an image in pixels, one number for both or ``(height, width)``.
        img_channels: Those of the autoencoder; or 1 with an autoencoder of RGB.

    Raises:
        ImportError: diffusers is not installed.
        ValueError: diffusers cannot build it, or it takes no such images.

    Reference: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022, section 3.1 and
    appendix G.

    Example:
        >>> sizes = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4}
        >>> blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
        >>> DiffusersVAE("AutoencoderKL", sizes | blocks, img_resolution=32).decode(torch.randn(2, 4, 8, 8)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self, autoencoder: str, config: Mapping[str, Any], img_resolution: Resolution, img_channels: int = 3
    ) -> None:
        super().__init__()
        self.autoencoder_name = autoencoder
        self.autoencoder: Any = _built(autoencoder, config)
        self.config = _arguments_in(autoencoder, self.autoencoder.config)
        self.factor = factor_of(autoencoder, self.config)
        own_channels = self.config["in_channels"]
        if self.config["out_channels"] != own_channels or img_channels not in (own_channels, 1):
            raise ValueError(
                f"img_channels needs to be {own_channels}, or 1 for grey images: got {img_channels} for an "
                f"autoencoder from {own_channels} to {self.config['out_channels']} channels"
            )
        self.img_channels, self.img_size = img_channels, sides(img_resolution)
        self.latent_shape = (self.config["latent_channels"], *(math.ceil(n / self.factor) for n in self.img_size))
        self.latent_space, self.preferred_path = "vae", "slerp"
        self.latent_centre: Tensor
        self.latent_scale: Tensor
        centre, scale = _units(self.config)  # buffers, so that they are part of the digest
        self.register_buffer("latent_centre", centre)
        self.register_buffer("latent_scale", scale)
        self.freeze()

    @classmethod
    def from_diffusers(
        cls,
        name: str | Path,
        *,
        img_resolution: Resolution,
        img_channels: int = 3,
        subfolder: str = "",
        **where: Unpack[hub.HubOptions],
    ) -> DiffusersVAE:
        """Read an autoencoder as diffusers writes it: ``config.json``, ``diffusion_pytorch_model.safetensors``.

        ``save_pretrained`` then writes it as ours, which ``load_generator`` and the command line read; so does
        ``latent-mixup convert``. ``metadata["source"]`` says where it comes from.

        Args:
            name: A folder, or a Hub id such as ``"stabilityai/sd-vae-ft-mse"``, ``"madebyollin/taesd"``.
            img_resolution: Height and width of the images in pixels, one number for both or ``(height, width)``.
            img_channels: 3; or 1, grey images.
            subfolder: Where in it the autoencoder lies; of a whole pipeline ``"vae"``.
            where: ``revision``, ``cache_dir``, ``token``, ``local_files_only``: see :class:`hub.HubOptions`.

        Raises:
            FileNotFoundError: There is nothing of that name, or it has no safetensors: a pickle is not opened.
            FormatError: What is there is no such autoencoder; the message names file and field.
            HubError: The Hub did not give it.
            ImportError: diffusers is not installed.

        Example:
            >>> DiffusersVAE.from_diffusers("madebyollin/taesd", img_resolution=64).latent_shape  # doctest: +SKIP
            (4, 8, 8)
        """

        def needed(main: Path) -> list[hub.Needed]:
            build = partial(cls, *_read_config(main), img_resolution, img_channels)
            return [needed_weights(main, build, WEIGHTS_FILE)]

        folder = hub.locate(name, "generator", needed, subfolder=subfolder, **where)
        config = _read_config(files.safe_path(folder, CONFIG_FILE))
        path = _weights_in(folder)
        generator = unallocated(folder, partial(cls, *config, img_resolution, img_channels))
        generator._fill(read_weights(path, generator.autoencoder.state_dict(), FORMER_NAMES, READ_DTYPES))
        origin = hub.origin_of(folder) or {"folder": folder.resolve().name}
        source = {**origin, "subfolder": subfolder or None, "sha256": files.sha256(path)}
        place = f"{origin['repo']}@{origin['commit']}" if "repo" in origin else origin["folder"]
        px = " x ".join(map(str, dict.fromkeys(generator.img_size)))
        generator.metadata = {
            "name": f"{generator.autoencoder_name} of {place}, for {px} px",
            "source": {key: value for key, value in source.items() if value is not None},
            "licence": "that of the source",
        }
        return generator

    @classmethod
    def from_module(cls, autoencoder: nn.Module, *, img_resolution: Resolution, img_channels: int = 3) -> DiffusersVAE:
        """A generator with a copy of the weights of an autoencoder in memory, such as one that you have trained.

        Raises:
            ValueError: It is another class, or takes no such images.
        """
        config = getattr(autoencoder, "config", {})
        with torch.device("meta"):
            generator = cls(type(autoencoder).__name__, config, img_resolution, img_channels)
        generator._fill({name: tensor.float().clone() for name, tensor in autoencoder.state_dict().items()})
        return generator.to(next(autoencoder.parameters()).device)

    def _fill(self, weights: Mapping[str, Tensor]) -> None:
        """Weights for an autoencoder that was built without allocating it."""
        self.autoencoder.load_state_dict(weights, strict=True, assign=True)
        self.freeze()

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "autoencoder": self.autoencoder_name,
            "config": self.config,
            "img_resolution": self.img_resolution,
            "img_channels": self.img_channels,
        }

    def decode(self, latents: Tensor) -> Tensor:
        """Codes ``[B, C, h, w]`` to images ``[B, *image_shape]``, clamped to [-1, 1].

        So are those of diffusers' pipelines; a pixel that is clamped has no gradient.
        """
        self.check_latents(latents)
        raw = latents.float() * self.latent_scale.float() + self.latent_centre.float()
        images: Tensor = self.autoencoder.decode(raw.to(self.dtype)).sample.float().clamp(-1, 1)
        (left, _, top, _), (height, width) = self._padding(), self.img_size
        images = images[..., top : top + height, left : left + width]
        return images.mean(1, keepdim=True) if self.img_channels < images.shape[1] else images

    def encode(self, images: Tensor) -> Tensor:
        """Images ``[B, *image_shape]`` in [-1, 1] to the modes of their distributions, ``[B, C, h, w]``.

        Raises:
            ValueError: The images have another size.
        """
        if images.shape[1:] != self.image_shape:
            raise ValueError(
                f"images need shape [B, {', '.join(map(str, self.image_shape))}]: got {list(images.shape)}"
            )
        images = images.to(self.dtype).expand(-1, self.config["in_channels"], -1, -1)
        found = self.autoencoder.encode(F.pad(images, self._padding(), mode="replicate"))
        raw: Tensor = found.latents if self.autoencoder_name == "AutoencoderTiny" else found.latent_dist.mode()
        return (raw.float() - self.latent_centre.float()) / self.latent_scale.float()

    def _padding(self) -> tuple[int, int, int, int]:
        """Pixels to the left, right, top and bottom of an image that fill up a multiple of the factor."""
        tall, wide = (-side % self.factor for side in self.img_size)
        return wide // 2, wide - wide // 2, tall // 2, tall - tall // 2


# --- The network


def _class_named(name: object) -> Any:
    if name not in CLASSES:
        raise ValueError(f"an autoencoder of diffusers needs to be one of {', '.join(CLASSES)}: got {name!r:.100}")
    try:
        return getattr(importlib.import_module("diffusers"), str(name))
    except ImportError as cause:
        raise ImportError(f'{name} needs diffusers: pip install "latent-mixup[diffusers]"') from cause


def _arguments_in(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a class that a config has, as JSON has them; its notes (``_class_name``) are left out.

    Raises:
        ValueError: There is something else in it.
    """
    known = inspect.signature(_class_named(name)).parameters
    if not isinstance(config, Mapping):
        raise ValueError(f"config needs to be the arguments of {name}: got {type(config).__name__}")
    found = {key: value for key, value in config.items() if not key.startswith("_") and key not in DERIVED[name]}
    if unknown := sorted(found.keys() - known.keys()):
        raise ValueError(f"{name} of this diffusers knows no {', '.join(unknown):.200}: upgrade diffusers")
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def _built(name: str, config: Mapping[str, Any]) -> Any:
    """The autoencoder with new weights; tiling and slicing, which change images at the seams, are off in it."""
    arguments = _arguments_in(name, config)
    for key, value in arguments.items():
        entries = value if isinstance(value, list) else [value]
        most = MAX_ENTRIES if key.startswith("latents_") else MAX_STAGES
        if len(entries) > most:
            raise ValueError(f"{key} needs at most {most} entries: got {len(entries)}")
        counts_layers = key == "layers_per_block" or key.endswith("coder_blocks")
        if counts_layers and not all(isinstance(entry, int) and 0 <= entry <= MAX_LAYERS for entry in entries):
            raise ValueError(f"{key} needs integers up to {MAX_LAYERS}: got {value!r:.100}")
    try:
        return _class_named(name)(**arguments)
    except Exception as cause:  # what diffusers makes of a wrong config: KeyError, ZeroDivisionError, its own
        raise ValueError(f"diffusers cannot build this {name}: {type(cause).__name__}: {cause}") from cause


def factor_of(name: str, config: Mapping[str, Any]) -> int:
    """How many pixels, on each axis, one place of a code has."""
    if name == "AutoencoderKL":
        return int(2 ** (len(config["block_out_channels"]) - 1))
    down = 2 ** (len(config["num_encoder_blocks"]) - 1)
    up = config["upsampling_scaling_factor"] ** (len(config["num_decoder_blocks"]) - 1)
    if down != up:
        raise ValueError(f"this AutoencoderTiny makes images {down} times smaller and codes {up} times larger")
    return int(down)


def _units(config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Centre and scale, ``[C, 1, 1]`` each: ``raw = code * scale + centre``, as diffusers' pipelines have it.

    Where a config has the mean and standard deviation of its codes they are used; else its shift.
    """
    channels = config["latent_channels"]
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        mean, std = [config.get("shift_factor") or 0.0] * channels, [1.0] * channels
    # On the CPU whatever the default, so that a network without storage has them
    centre, deviation = (torch.tensor(values, dtype=torch.float32, device="cpu") for values in (mean, std))
    scale = deviation / config["scaling_factor"]
    if not (centre.shape == scale.shape == (channels,) and (centre.isfinite() & scale.isfinite() & (scale > 0)).all()):
        raise ValueError(
            f"scaling_factor, shift_factor, latents_mean and latents_std need to be finite, for {channels} channels, "
            f"scales above 0: got {config['scaling_factor']!r:.50}, {mean!r:.100}, {std!r:.100}"
        )
    return centre.view(-1, 1, 1), scale.view(-1, 1, 1)


# --- Files


def _read_config(path: Path) -> tuple[str, dict[str, Any]]:
    """Class and arguments of a ``config.json`` of diffusers.

    Raises:
        FileNotFoundError: There is none; of a pipeline it says where to look.
        FormatError: It is another's.
    """
    if (path.parent / "model_index.json").is_file() and not path.is_file():
        raise FileNotFoundError(f"{path} is missing: pass subfolder='vae' of this whole pipeline")
    config = files.read_json(path)
    name = config.get("_class_name")
    if name not in CLASSES:
        found = f"that of a {config['architecture']} of latent-mixup" if "architecture" in config else repr(name)[:100]
        raise files.FormatError(f"{path}: field '_class_name' needs one of {', '.join(CLASSES)}: found {found}")
    return name, config


def _weights_in(folder: Path) -> Path:
    """The file of weights; raises ``FileNotFoundError`` where there is none, or only a pickle."""
    path = files.safe_path(folder, WEIGHTS_FILE)
    if path.is_file():
        return path
    if pickles := sorted(pickle.name for pickle in folder.glob(PICKLES)):
        raise FileNotFoundError(
            f"{path} is missing, and {pickles[0]} is a pickle, which could execute code: get the weights as safetensors"
        )
    raise FileNotFoundError(f"{path} is missing: expected a folder that diffusers wrote")
