"""LPIPS, the perceptual distance of RGB images, and the paper's loss, LPIPS mixed with the pixel MSE.

The heads are read from the files of the ``lpips`` package. The backbone is torchvision's; its trained weights are
downloaded once. The forward pass is ours: the features of the targets, which never change, are computed once, and the
gradient is finite where features vanish (that of ``lpips`` is NaN once their squares are 0).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import sqrt
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from latent_mixup import files, hub
from latent_mixup.losses.base import pixel_mse
from latent_mixup.sampling import keyed_generator

BackboneName: TypeAlias = Literal["vgg", "alex", "squeeze"]
Weights: TypeAlias = str | Path | Mapping[str, Tensor]

EPS = 1e-10  # of the squared length of a feature vector
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and std for pixels in [-1, 1]
HUB_FILE = "model.safetensors"
SAFE_SINCE = "2.10"  # version of torch; in older ones a hostile .pth corrupts memory (CVE-2026-24747)
_FILE_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


@dataclass(frozen=True)
class Backbone:
    """A network of torchvision, and the features that are compared.

    Attributes:
        network: Name in ``torchvision.models``.
        taps: Layers of ``network.features`` whose outputs are compared.
        min_size: Smallest height and width at which each of these outputs has a pixel.
    """

    network: str
    taps: tuple[int, ...]
    min_size: int


BACKBONES: dict[BackboneName, Backbone] = {
    "vgg": Backbone("vgg16", (3, 8, 15, 22, 29), 16),
    "alex": Backbone("alexnet", (1, 4, 7, 9, 11), 31),
    "squeeze": Backbone("squeezenet1_1", (1, 4, 7, 9, 10, 11, 12), 17),
}


class LPIPS(nn.Module):
    """A perceptual distance of RGB images: weighted squared differences of a trained network's unit feature vectors.

    Equal to ``lpips.LPIPS(net=backbone)``. Targets are embedded once; vgg's features of a target of 32 px take 0.5 MB,
    of 256 px 32 MB.

    Args:
        backbone: ``"vgg"`` (images from 16 px), ``"alex"`` (31) or ``"squeeze"`` (17).
        weights: Weights of the backbone, under torchvision's names (``features.0.weight``): a state dict, the path of
            one (``.pth`` or ``.safetensors``), or a Hub repository ``org/repo[@revision]`` with a
            ``model.safetensors``. None: torchvision's file in torch's cache. ``"random"``: untrained, for tests.
        resize: Shorter side that images are resized to first, bilinear with antialiasing; for images that are too
            small, or to save time on large ones.
        repeat_channels: Accept images of one channel as well, as grey RGB images. The features know photographs.
        download: With ``weights=None``: download torchvision's file if it is not in torch's cache (vgg16: 528 MB),
            and check its SHA-256.
        seed: Seed of ``weights="random"``.

    Raises:
        FileNotFoundError: There are no weights; the message names the file and where to get it.
        FormatError: The file or state dict is broken or belongs to another network.
        HubError: The Hub did not give the file.
        RuntimeError: The file is no ``.safetensors``, and torch is older than 2.10.
        ValueError: There is no such backbone, or ``resize`` is too small for it.

    Reference: Zhang et al. 2018 (arXiv 1801.03924), equation 1.

    Example:
        >>> LPIPS(weights="random")(torch.zeros(2, 3, 32, 32), torch.ones(2, 3, 32, 32)).shape
        torch.Size([2])
    """

    shift: Tensor
    scale: Tensor
    heads: Tensor

    def __init__(
        self,
        backbone: BackboneName = "vgg",
        *,
        weights: Weights | None = None,
        resize: int | None = None,
        repeat_channels: bool = False,
        download: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise ValueError(f"LPIPS has the backbones {', '.join(BACKBONES)}: got {backbone!r}")
        self.spec = BACKBONES[backbone]
        if resize is not None and resize < self.spec.min_size:
            raise ValueError(f"LPIPS with {backbone} needs resize from {self.spec.min_size} px: got {resize}")
        self.backbone, self.resize, self.repeat_channels = backbone, resize, repeat_channels
        self.is_random = isinstance(weights, str) and weights == "random"
        self.features = _load_features(self.spec, weights, seed if self.is_random else None, download)
        heads = _read_heads(backbone)
        self.widths = [head.numel() for head in heads]
        self.register_buffer("heads", torch.cat(heads))
        self.register_buffer("shift", torch.tensor(SHIFT, dtype=torch.float32, device="cpu").view(3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE, dtype=torch.float32, device="cpu").view(3, 1, 1))
        self.requires_grad_(False).eval()

    @property
    def loss_name(self) -> str:
        """Name in a bank's metadata."""
        random = "random " if self.is_random else ""
        return f"{random}lpips {self.backbone}" + (f" at {self.resize} px" if self.resize else "")

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Images and targets ``[B, 3, H, W]`` in [-1, 1] to ``[B]``, from 0; no gradient reaches the targets."""
        return self.compare(images, self.embed(targets))

    def embed(self, targets: Tensor) -> tuple[Tensor, ...]:
        """Unit feature vectors of targets ``[B, 3, H, W]`` in [-1, 1]: one tensor ``[B, C_l, H_l, W_l]`` a tap."""
        with torch.no_grad():
            return self._unit_features(targets)

    def compare(self, images: Tensor, embedded: tuple[Tensor, ...]) -> Tensor:
        """Images ``[B, 3, H, W]`` in [-1, 1] against the result of :meth:`embed`: ``[B]``.

        Raises:
            ValueError: Images or targets are not RGB, too small, or not as many or as large as each other.
        """
        found = self._unit_features(images)
        if found[0].shape != embedded[0].shape:
            raise ValueError(
                f"images {list(images.shape)} have features {list(found[0].shape)}, the targets' are "
                f"{list(embedded[0].shape)}: pass as many images as targets, of their size"
            )
        heads = self.heads.split(self.widths)
        distances = [_distance(*layer) for layer in zip(found, embedded, heads, strict=True)]
        return torch.stack(distances).sum(0)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise ``ValueError`` unless images of this shape can be compared."""
        if len(shape) != 4 or shape[1] not in (1, 3):
            raise ValueError(f"LPIPS compares images [B, 3, H, W]: got {list(shape)}")
        if shape[1] == 1 and not self.repeat_channels:
            raise ValueError(
                f"LPIPS compares RGB images: got {list(shape)}, of one channel; use the features of a network that was "
                "trained on such images, FeatureLoss(network), or LPIPS(repeat_channels=True)"
            )
        if self.resize is None and min(shape[2:]) < self.spec.min_size:
            raise ValueError(
                f"LPIPS with {self.backbone} needs images from {self.spec.min_size}x{self.spec.min_size} px: got "
                f"{shape[2]}x{shape[3]}; enlarge them with LPIPS(resize=64)"
            )

    def _unit_features(self, images: Tensor) -> tuple[Tensor, ...]:
        self.check_shape(images.shape)
        if not images.is_floating_point():
            raise ValueError(
                f"LPIPS compares float images in [-1, 1]: got {images.dtype}; images.from_uint8 makes them"
            )
        if self.resize is not None:
            size = [round(side * self.resize / min(images.shape[2:])) for side in images.shape[2:]]
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        hidden = (images - self.shift) / self.scale  # one channel becomes three here
        found = []
        for number, layer in enumerate(self.features):
            hidden = layer(hidden)
            if number in self.spec.taps:
                found.append(_unit_vectors(hidden))
        return tuple(found)


class PerceptualLoss(nn.Module):
    """The paper's inversion loss, ``0.9 LPIPS + 0.1 MSE``, for RGB images in [-1, 1].

    Args:
        lpips_weight: Weight of LPIPS, from 0.
        mse_weight: Weight of the pixel MSE, from 0.
        lpips: An :class:`LPIPS` with another backbone, or weights from elsewhere. None: vgg, from torch's cache.

    Raises:
        FileNotFoundError: ``lpips`` is None, and torch's cache has no backbone; the message says how to get it.
        ValueError: A weight is negative.

    Reference: Latent-Mixup, section 2.1.2.1.

    Example:
        >>> loss = PerceptualLoss(lpips=LPIPS(weights="random"))
        >>> embedded = loss.embed(torch.zeros(2, 3, 32, 32))
        >>> loss.compare(torch.ones(2, 3, 32, 32), embedded).shape
        torch.Size([2])
    """

    def __init__(self, lpips_weight: float = 0.9, mse_weight: float = 0.1, *, lpips: LPIPS | None = None) -> None:
        super().__init__()
        if not (lpips_weight >= 0 and mse_weight >= 0):
            raise ValueError(f"lpips_weight and mse_weight need numbers from 0: got {lpips_weight} and {mse_weight}")
        self.lpips_weight, self.mse_weight = lpips_weight, mse_weight
        self.lpips = LPIPS() if lpips is None else lpips

    @property
    def loss_name(self) -> str:
        """Name in a bank's metadata."""
        return f"{self.lpips_weight:g} {self.lpips.loss_name} + {self.mse_weight:g} mse"

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Images and targets ``[B, 3, H, W]`` in [-1, 1] to ``[B]``."""
        return self.compare(images, self.embed(targets))

    def embed(self, targets: Tensor) -> tuple[Tensor, ...]:
        """Features of the targets, and the targets."""
        return *self.lpips.embed(targets), targets

    def compare(self, images: Tensor, embedded: tuple[Tensor, ...]) -> Tensor:
        """Images ``[B, 3, H, W]`` against the result of :meth:`embed`: ``[B]``."""
        *features, targets = embedded
        perceptual = self.lpips.compare(images, tuple(features))
        return self.lpips_weight * perceptual + self.mse_weight * pixel_mse(images, targets)


def _unit_vectors(features: Tensor) -> Tensor:
    """Each pixel's features ``[B, C, H, W]`` at length 1; where they vanish, finite with their gradient."""
    return features / (features.square().sum(1, keepdim=True) + EPS).sqrt()


def _distance(features: Tensor, targets: Tensor, head: Tensor) -> Tensor:
    """Weighted squared difference ``[B, C, H, W]`` twice, ``[C]``: summed over C, its mean over pixels ``[B]``."""
    return torch.einsum("bchw,c->bhw", (features - targets).square(), head).mean((1, 2))


# ---- where the weights come from ------------------------------------------------------------------


def _read_heads(backbone: BackboneName) -> list[Tensor]:
    """The trained weights of each tap's channels, ``[C_l]``, from the files of the ``lpips`` package."""
    package = find_spec("lpips")  # reading beside it: importing it loads scipy and takes a second
    if package is None or package.origin is None:
        raise ModuleNotFoundError("LPIPS reads its heads from the package lpips: pip install lpips")
    path = Path(package.origin).parent / "weights" / "v0.1" / f"{backbone}.pth"
    heads = torch.load(path, map_location="cpu", weights_only=True)
    return [heads[f"lin{number}.model.1.weight"].flatten() for number in range(len(BACKBONES[backbone].taps))]


def _load_features(spec: Backbone, weights: Weights | None, random_seed: int | None, download: bool) -> nn.Sequential:
    """The layers up to the last tap, with weights; draws nothing from the global random state."""
    from torchvision import models

    with torch.device("meta"):  # no memory, no initialisation
        whole = models.get_model(spec.network, weights=None).features
    features = nn.Sequential(*whole[: spec.taps[-1] + 1])
    shapes = {f"features.{name}": tensor.shape for name, tensor in features.state_dict().items()}
    if random_seed is not None:
        tensors = _random_tensors(shapes, random_seed)
    elif isinstance(weights, Mapping):
        tensors = _checked("the state dict", weights, shapes, spec)
    else:
        path = _cached_file(spec, download) if weights is None else _weights_file(weights, spec)
        tensors = _checked(str(path), _read_tensors(path, spec), shapes, spec)
    features = features.float().to_empty(device="cpu")
    features.load_state_dict({name.removeprefix("features."): tensor for name, tensor in tensors.items()})
    return features


def _random_tensors(shapes: Mapping[str, torch.Size], seed: int) -> dict[str, Tensor]:
    """He's initialisation: normal filters of variance 2 / fan-in, biases of zero."""
    draw, tensors = keyed_generator("random-backbone", seed), {}
    for name, shape in shapes.items():
        tensors[name] = torch.zeros(shape, dtype=torch.float32, device="cpu")
        if len(shape) > 1:
            tensors[name].normal_(0, sqrt(2 / shape[1:].numel()), generator=draw)
    return tensors


def _official_url(spec: Backbone) -> str:
    """Address of the weights that ``lpips`` was trained with; the name holds 8 digits of their SHA-256."""
    from torchvision import models

    return str(models.get_model_weights(spec.network).IMAGENET1K_V1.url)


def _cached_file(spec: Backbone, download: bool) -> Path:
    """Torchvision's file in torch's cache, which ``TORCH_HOME`` moves."""
    url = _official_url(spec)
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    _refuse_unless_safe(path)  # before it is downloaded
    if path.is_file():
        return path
    if not download:
        raise FileNotFoundError(
            f"LPIPS needs the trained backbone {path.name}, which is not in {path.parent}: pass LPIPS(download=True) "
            f"(--download-lpips) to get it from {url}, name such a file or a Hub repository with a {HUB_FILE} in "
            'LPIPS(weights=) (--lpips-weights), or pass loss="pixels" (--loss pixels)'
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.rsplit("-", 1)[1])
    except (OSError, RuntimeError) as cause:  # RuntimeError: another SHA-256
        raise OSError(f"cannot download {url}: {cause}; download it into {path.parent} by hand") from cause
    return path


def _weights_file(weights: str | Path, spec: Backbone) -> Path:
    """A file, or ``model.safetensors`` in a folder or a Hub repository; a missing path is never taken for a Hub id."""
    path = Path(os.path.expanduser(weights))
    is_name = isinstance(weights, str) and not weights.endswith(_FILE_SUFFIXES) and hub.is_hub_id(weights)
    if is_name and not os.path.exists(path):  # os.path, unlike pathlib, takes any string
        return hub.download_file(str(weights), HUB_FILE)
    if os.path.isdir(path):
        path = path / HUB_FILE
    if os.path.isfile(path):
        return path
    raise FileNotFoundError(
        f"there is no file {str(path)!r} with weights of {spec.network}: expected a state dict of torchvision's (.pth "
        f"or .safetensors), such as {_official_url(spec)}, or a Hub id org/repo with a {HUB_FILE}"
    )


def _read_tensors(path: Path, spec: Backbone) -> Mapping[str, Any]:
    """The tensors of a file; one with torchvision's name must have the SHA-256 that its name holds."""
    if path.suffix != ".safetensors":
        _refuse_unless_safe(path)
    url = _official_url(spec)
    if path.name == url.rsplit("/", 1)[1]:
        expected, found = path.stem.rsplit("-", 1)[1], files.sha256(path)
        if not found.startswith(expected):
            raise files.FormatError(
                f"{path} is broken: its SHA-256 starts with {found[: len(expected)]}, its name says {expected}; "
                f"remove it and download {url}"
            )
    try:
        if path.suffix == ".safetensors":
            with torch.device("cpu"), safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in sorted(file.keys()) if name.startswith("features.")}
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise  # of the disk, not of what is in the file
    except Exception as cause:  # neither library names the errors that a broken file can give
        raise files.FormatError(f"{path} is no whole file of tensors ({type(cause).__name__}): get it again") from cause
    if not isinstance(tensors, Mapping):
        raise files.FormatError(f"{path} needs to hold a state dict: found {type(tensors).__name__}")
    return tensors


def _refuse_unless_safe(path: Path) -> None:
    """Raise ``RuntimeError`` where a hostile file could harm this torch, although nothing in it is executed."""
    if torch.__version__ < SAFE_SINCE:
        raise RuntimeError(
            f"LPIPS reads {path.name} on torch {SAFE_SINCE} or newer alone: got torch "
            f"{torch.__version__}, whose torch.load a hostile file can harm (CVE-2026-24747); upgrade torch, name a "
            f".safetensors file or a Hub repository with a {HUB_FILE} in LPIPS(weights=) (--lpips-weights), or pass "
            'loss="pixels" (--loss pixels)'
        )


def _checked(
    source: str, tensors: Mapping[str, Any], shapes: Mapping[str, torch.Size], spec: Backbone
) -> dict[str, Tensor]:
    """The tensors of these names, after a check of shapes and values; others are ignored."""
    for name, shape in shapes.items():
        tensor = tensors.get(name)
        problem = None
        if not isinstance(tensor, Tensor):
            problem = "is missing"
        elif not tensor.is_floating_point():
            problem = f"needs floats, found {tensor.dtype}"
        elif tensor.shape != shape:
            problem = f"needs {list(shape)}, found {list(tensor.shape)}"
        elif not tensor.isfinite().all():
            problem = "has a value that is not finite"
        if problem:
            raise files.FormatError(
                f"{source}: tensor {name!r} {problem}: expected weights of torchvision's {spec.network}"
            )
    return {name: tensors[name] for name in shapes}
