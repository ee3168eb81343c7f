"""The contract of an encoder: images in [-1, 1] in, latent codes of one generator out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from latent_mixup import cards, files, hub, networks
from latent_mixup.generators.base import Generator, check_generator

ENCODER_FIELDS = {**networks.FIELDS, "generator": files.Field(lambda value: isinstance(value, dict), "a dict")}
MAX_LAYERS = 64  # more layers than this are a broken file, not a network

E = TypeVar("E", bound="Encoder")


class Encoder(networks.SavedNetwork, ABC):
    """A network that finds the latent codes of images: the learned inverse of one generator.

    Constructors leave it frozen and in eval mode; ``latent_mixup.training`` thaws it. The generator is an attribute but
    no submodule: its tensors are not in ``state_dict``, and ``to`` does not move it.

    Args:
        generator: The generator to invert.

    Attributes:
        generator: The generator.
        latent_shape: Shape of one code, without the batch: the generator's.
        metadata: How the encoder came to be; kept in its ``config.json``. Read from the Hub, ``metadata["hub"]`` says
            of which ``repo`` and ``commit``.
    """

    hub_kind: ClassVar[hub.Kind] = "encoder"
    generator: Generator

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        check_generator(generator)
        object.__setattr__(self, "generator", generator)  # nn.Module's own would make its tensors part of the encoder
        self.latent_shape = generator.latent_shape
        self.image_shape = generator.image_shape
        self.metadata: dict[str, Any] = {}

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` in [-1, 1] to codes ``[B, *latent_shape]``."""

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """What the constructor needs, beside the generator, to build this network again; only JSON values."""

    def freeze(self: E) -> E:
        """Eval mode, and no gradient for the parameters. Constructors end with it."""
        return self.requires_grad_(False).eval()

    def check_images(self, images: Tensor) -> None:
        """Raise ``ValueError`` unless ``images`` is ``[B, C, H, W]`` of the generator's size."""
        if tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(
                f"images need shape [B, {', '.join(map(str, self.image_shape))}]: got {list(images.shape)}"
            )

    def describe(self, *, digest: str | None = None) -> cards.Facts:
        """What the encoder's card says: see :meth:`SavedNetwork.describe`."""
        stated = self.generator.metadata
        return networks.network_facts(
            self,
            "an encoder",
            "It finds latent codes of images: the learned inverse of one generator, and where an inversion of that "
            "generator starts (`latent_mixup.invert(..., encoder=encoder)`).",
            f"""from latent_mixup import load_generator
from latent_mixup.encoders import load_encoder

generator = load_generator({{generator}})
encoder = load_encoder({{here}}, generator)
latents = encoder(generator.decode(generator.sample_latents(4)))  # {[4, *self.latent_shape]}""",
            {
                "images": networks.image_size(self.image_shape),
                "latent codes": f"{list(self.latent_shape)} in {self.generator.latent_space}",
            },
            digest=digest,
            generator=cards.generator_name(stated, hub.stated_origin(stated)),
            generator_digest=self.generator.digest(),
        )

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> Path:
        """Write ``config.json``, which names the generator, ``model.safetensors`` and a card.

        The card is ``README.md``; one that somebody wrote or edited stays.

        Args:
            folder: Made where it is missing; an older encoder in it is replaced whole.
            dtype: Of the stored weights: float32, or float16 for half the size. They are read as float32.

        Raises:
            ValueError: ``dtype`` is another one, or a weight is not finite in it.
        """
        fields = {"arguments": self.arguments(), "metadata": self.metadata, "generator": identity(self.generator)}
        return networks.write_network(self, folder, fields, dtype=dtype)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # it needs its generator
        cls: type[E],
        name: str | Path,
        generator: Generator,
        *,
        verify: bool = True,
        **where: Unpack[hub.HubOptions],
    ) -> E:
        """An encoder of this class; see :func:`latent_mixup.encoders.load_encoder`, which takes any."""
        return load(name, generator, {cls.__name__: cls}, verify=verify, **where)


def identity(generator: Generator) -> dict[str, Any]:
    """Which generator, and which of its latent spaces, an encoder belongs to; only JSON values."""
    return {
        "name": generator.metadata.get("name"),
        "digest": generator.digest(),
        "latent_space": generator.latent_space,
        "latent_shape": list(generator.latent_shape),
    }


def load(
    name: str | Path,
    generator: Generator,
    architectures: Mapping[str, type[E]],
    *,
    verify: bool,
    **where: Unpack[hub.HubOptions],
) -> E:
    """An encoder of one of the ``architectures``: see :func:`latent_mixup.encoders.load_encoder`."""
    check_generator(generator)
    expected = identity(generator)

    def check(main: Path, config: dict[str, Any]) -> None:
        trained_for = config["generator"]
        if set(trained_for) != set(expected):
            raise files.FormatError(
                f"{main}: field 'generator' needs {', '.join(expected)}: found {', '.join(trained_for) or 'none'}"
            )
        if any(trained_for[key] != expected[key] for key in ("digest", "latent_space", "latent_shape")):
            raise ValueError(
                f"the encoder in {main.parent} belongs to {_described(trained_for)}: got {_described(expected)}; "
                "load that generator, or train an encoder for this one"
            )

    encoder = networks.load_network(
        name, "encoder", architectures, generator, fields=ENCODER_FIELDS, check=check, verify=verify, **where
    )
    return encoder.to(generator.device)


def _described(generator: dict[str, Any]) -> str:
    return (
        f"generator {generator['name']!r:.100} (digest {generator['digest']!s:.12}, "
        f"codes of {generator['latent_shape']!r:.40} in {generator['latent_space']!r:.10})"
    )


def counts(name: str, values: object) -> tuple[int, ...]:
    """A sequence of integers from 1, at most 64 of them, as a tuple.

    Raises:
        ValueError: It is something else.
    """
    if not (isinstance(values, list | tuple) and len(values) <= MAX_LAYERS and all(map(files.is_count, values))):
        raise ValueError(f"{name} needs at most {MAX_LAYERS} integers from 1: got {values!r:.100}")
    return tuple(values)
