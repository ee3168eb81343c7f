"""The contract of a generator: latent codes in, images in [-1, 1] out."""

from __future__ import annotations

import inspect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from latent_mixup import cards, files, hub
from latent_mixup.networks import SavedNetwork, image_size, network_facts
from latent_mixup.pictures import notebook_png, opened, sample_sheet

LatentSpace: TypeAlias = Literal["z", "w", "w+", "vae"]
PathName: TypeAlias = Literal["lerp", "slerp"]

G = TypeVar("G", bound="Generator")


class Generator(SavedNetwork, ABC):
    """A frozen network that decodes latent codes into images.

    A generator is always in eval mode and its parameters take no gradient; ``decode`` is
    differentiable in its latents. Training happens on the networks inside it (``latent_mixup.training``).
    ``latent_mixup.load_generator`` reads any, ``from_pretrained`` those of its class.

    Attributes:
        latent_shape: Shape of one code, without the batch; ``(num_ws, w_dim)`` in W+.
        latent_space: ``"z"``, ``"w"``, ``"w+"`` or ``"vae"``.
        img_channels: Channels of a decoded image.
        img_resolution: Height and width of a decoded image, in pixels: one number where they are the same, else the
            two, ``(height, width)``. A class sets this or ``img_size``.
        preferred_path: How two codes of this space are mixed when nobody says: ``"lerp"`` or ``"slerp"``.
        decode_batches: How many training batches :class:`latent_mixup.LatentMixupLoader` decodes in one call on a CPU,
            when nobody says: more than 1 where the network is so small that a call's fixed cost shows.
        takes_targets: Whether ``decode`` takes soft targets, ``[B, num_classes]``, beside the codes: ``render`` and the
            wrappers then hand it the labels of the mixes.
        preferred_inversion: What ``invert`` takes unless somebody says: ``loss``, ``steps`` and ``restarts``.
        features: A frozen feature network for images of this kind, where one comes with the generator.
        metadata: How the generator came to be; kept in its ``config.json``. Read from the Hub, ``metadata["hub"]`` says
            of which ``repo`` and ``commit``.
    """

    hub_kind: ClassVar[hub.Kind] = "generator"
    latent_shape: tuple[int, ...]
    latent_space: LatentSpace
    img_channels: int
    img_resolution: int | tuple[int, int]
    preferred_path: PathName
    decode_batches: int = 1
    takes_targets: bool = False
    preferred_inversion: ClassVar[Mapping[str, Any]] = {}
    features: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        self.features = None
        self.metadata: dict[str, Any] = {}

    @property
    def img_size(self) -> tuple[int, int]:
        """Height and width of a decoded image, in pixels, square or not."""
        return sides(self.img_resolution)

    @img_size.setter
    def img_size(self, size: tuple[int, int]) -> None:
        height, width = size
        self.img_resolution = height if height == width else (height, width)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of a decoded image, ``(img_channels, height, width)``."""
        return (self.img_channels, *self.img_size)

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``[B, *latent_shape]`` to images, float32 ``[B, *image_shape]`` in [-1, 1]."""

    def sample_latents(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` codes from the prior, a standard normal one unless a class says otherwise.

        Args:
            n: Number of codes.
            generator: The CPU random stream that is drawn from; None for torch's own.

        Returns:
            ``[n, *latent_shape]`` float32, on the generator's device.
        """
        return self.from_noise(self.noise(n, *self.noise_shape, generator=generator))

    def from_noise(self, noise: Tensor, targets: Tensor | None = None) -> Tensor:
        """The codes of the prior that standard normal numbers stand for.

        Args:
            noise: ``[n, *noise_shape]``, on the generator's device.
            targets: Soft targets ``[n, num_classes]``, for a prior of each class; others do without.

        Returns:
            ``[n, *latent_shape]`` float32.
        """
        return noise

    def latents_of(self, seeds: Sequence[int], targets: Tensor | None = None) -> Tensor:
        """Codes of the prior, each drawn from a random stream of its own, so that it does not depend on the others.

        Args:
            seeds: Name of each stream, an integer of 64 bits.
            targets: See :meth:`from_noise`.

        Returns:
            ``[len(seeds), *latent_shape]`` float32, on the generator's device.
        """
        streams = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        if type(self).sample_latents is not Generator.sample_latents and type(self).from_noise is Generator.from_noise:
            return torch.cat([self.sample_latents(1, stream) for stream in streams])  # a class that knows no noise
        return self.from_noise(
            torch.stack([self.noise(*self.noise_shape, generator=each) for each in streams]), targets
        )

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise that one code of the prior is made of."""
        return self.latent_shape

    def noise(self, *size: int, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal float32 numbers, drawn on the CPU (or where ``generator`` draws), on this device."""
        source = "cpu" if generator is None else generator.device
        return torch.randn(*size, generator=generator, dtype=torch.float32, device=source).to(self.device)

    def mean_latent(self) -> Tensor:
        """The code that an inversion without an encoder starts from: ``[*latent_shape]`` float32; zeros by default."""
        return torch.zeros(self.latent_shape, dtype=torch.float32, device=self.device)

    def encode(self, images: Tensor) -> Tensor:
        """Images ``[B, *image_shape]`` in [-1, 1] to codes, where the generator has an encoder.

        Raises:
            NotImplementedError: This generator has none.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no encoder: pass encoder= to latent_mixup.invert, or start from its mean latent"
        )

    @property
    def has_encoder(self) -> bool:
        """Whether ``encode`` works."""
        return type(self).encode is not Generator.encode

    def project(
        self,
        latents: Tensor,
        t: float | Tensor,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Bring codes that lie between the data's, such as mixes of two classes, back to likely ones.

        A code is noised to time ``t`` of the prior, and denoised. A small ``t`` keeps its content and mends it little;
        ``t = 1`` gives a new sample.

        Args:
            latents: ``[B, *latent_shape]``.
            t: In [0, 1], one number or one a code, ``[B]``; 0 leaves a code as it is.
            noise: Standard normal, as ``latents``; None: drawn.
            generator: The CPU random stream that it is drawn from; None for torch's own.

        Returns:
            As ``latents``, float32.

        Raises:
            NotImplementedError: This generator has no learnt prior.
            ValueError: ``t`` is out of range.

        Reference: Meng et al., "SDEdit" (2022), section 3, for codes in the place of images.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no learnt prior to project codes with: latent_mixup.fit trains a generator "
            "that has one"
        )

    @property
    def has_prior(self) -> bool:
        """Whether ``project`` works."""
        return type(self).project is not Generator.project

    def show(self, *, seed: int = 0) -> Image.Image:
        """A picture of sixteen samples of the prior; notebooks show it, ``save(path)`` writes it.

        Args:
            seed: Of the samples.

        Raises:
            ValueError: The images are neither grey nor RGB.

        Example:
            >>> load_generator("fashion-mnist").show().mode  # doctest: +SKIP
            'RGB'
        """
        return opened(sample_sheet(self, seed=seed))

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows for a generator of grey or RGB images."""
        return notebook_png(self.show)

    @property
    def samples_classes(self) -> bool:
        """Whether a fresh code is one of a class, so that ``from_noise`` needs targets."""
        return bool(getattr(self, "c_dim", 0))

    @property
    def has_classes(self) -> bool:
        """Whether a fresh sample is of a class that is asked for: by its code, or in ``decode``."""
        return self.samples_classes or self.takes_targets

    @property
    def coder(self) -> Generator:
        """The generator that the codes belong to, which inverts images and is named in banks: itself, as a rule."""
        return self

    @property
    def device(self) -> torch.device:
        """Where the parameters live; the CPU for a generator without any."""
        first = next(itertools.chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights: float32, unless somebody called ``.half()`` or the like."""
        return next((parameter.dtype for parameter in self.parameters()), torch.float32)

    def forward(self, latents: Tensor) -> Tensor:
        """The same as :meth:`decode`."""
        return self.decode(latents)

    def train(self, mode: bool = True) -> Generator:
        """Stay in eval mode: a generator inside a model that is being trained must not change."""
        super().train(False)
        return self

    def freeze(self: G) -> G:
        """Eval mode, and no gradient for the parameters. Constructors end with it."""
        self.requires_grad_(False)
        self.train(False)
        return self

    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments, read from attributes of the same names; only JSON values.

        Raises:
            NotImplementedError: This class has no file format.
        """
        if not type(self).__module__.startswith(f"{__package__}."):
            raise self.no_format()
        values = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def no_format(self) -> NotImplementedError:
        """The error of a generator that cannot be written to a folder."""
        return NotImplementedError(
            f"{type(self).__name__} cannot be saved: only latent_mixup's own generators have a file format; "
            "save your network in its own, and wrap it again where you have read it"
        )

    def describe(self, *, digest: str | None = None) -> cards.Facts:
        """What the generator's card says: see :meth:`SavedNetwork.describe`."""
        shape = list(self.latent_shape)
        images = [16, *self.image_shape]
        features = "come with it, for the loss of an inversion; trained with the labels of the training images"
        num_classes = getattr(self, "c_dim", 0)
        return network_facts(
            self,
            "a generator",
            f"It decodes latent codes of shape {shape} into images, and mixes of codes into mixed images, which "
            "latent-mixup trains classifiers on.",
            f"""import latent_mixup as lm

generator = lm.load_generator({{here}})
latents = generator.sample_latents(16)  # {[16, *shape]}
images = generator.decode(latents)  # {images}, float32 in [-1, 1]""",
            {
                "images": image_size(self.image_shape),
                "latent codes": f"{shape} in {self.latent_space}, mixed by {self.preferred_path}",
                "classes": f"{num_classes:,}" if num_classes else "none: it makes images of all kinds",
                "encoder": "comes with it" if self.has_encoder else "none",
                "features": "none" if self.features is None else features,
            },
            digest=digest,
            task="unconditional-image-generation",
        )

    def check_latents(self, latents: Tensor) -> None:
        """Raise ``ValueError`` unless ``latents`` is ``[B, *latent_shape]``."""
        if tuple(latents.shape[1:]) != self.latent_shape:
            raise ValueError(
                f"latents need shape [B, {', '.join(map(str, self.latent_shape))}]: got {list(latents.shape)}"
            )


def sides(img_resolution: object) -> tuple[int, int]:
    """Height and width in pixels, given as one number or as two.

    Raises:
        ValueError: It is something else.

    Example:
        >>> sides(28), sides((96, 160))
        ((28, 28), (96, 160))
    """
    pair = img_resolution if isinstance(img_resolution, tuple | list) else (img_resolution, img_resolution)
    if len(pair) != 2 or not all(map(files.is_count, pair)):
        raise ValueError(f"img_resolution needs an integer from 1, or (height, width): got {img_resolution!r:.100}")
    return pair[0], pair[1]


def check_square(img_resolution: object, architecture: str) -> None:
    """Raise ``ValueError`` for ``(height, width)``, of an architecture whose images are square."""
    if isinstance(img_resolution, tuple | list):
        raise ValueError(
            f"{architecture} makes square images, so img_resolution needs one number: got {img_resolution!r:.100}; "
            "bring the images of the data set to a square, e.g. v2.Resize(64) and v2.CenterCrop(64)"
        )


def check_generator(generator: object) -> None:
    """Raise ``TypeError`` unless this is a :class:`Generator`; the message says how to get one from what it is."""
    if isinstance(generator, Generator):
        return
    if isinstance(generator, str):
        advice = f"load it: latent_mixup.load_generator({generator!r:.100})"
    elif callable(generator):
        advice = "wrap it: latent_mixup.generators.wrap(module, latent_shape=...)"
    else:
        advice = "is the order of the arguments another one?"
    raise TypeError(f"a Generator is wanted: got {type(generator).__name__}; {advice}")
