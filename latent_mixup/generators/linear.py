"""Principal components as a generator: the control beside which every other generator is measured."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from latent_mixup.generators.base import Generator, sides
from latent_mixup.sampling import keyed_generator

RANK_TOLERANCE = 1e-10  # of the largest variance: less is rounding, in float64


class Linear(Generator):
    """PCA: a code holds the principal components of an image, each divided by its standard deviation.

    The codes of the images that it was fitted to have mean 0 and variance 1, so ``sample_latents`` draws from the
    Gaussian of these images, and codes are mixed by ``slerp``, which keeps that Gaussian. Made by :meth:`fit`.

    Args:
        latent_dim: Numbers in a code.
        img_channels: Channels of an image.
        img_resolution: Height and width in pixels, one number for both or ``(height, width)``.
        noise_std: Standard deviation of Gaussian noise added to every pixel of a decoded image. It is a function of the
            code: the same code gives the same noise, in any batch.

    Raises:
        ValueError: ``noise_std`` is negative or not finite.

    Example:
        >>> Linear(latent_dim=8).decode(torch.randn(2, 8)).shape
        torch.Size([2, 1, 28, 28])
    """

    def __init__(
        self,
        latent_dim: int = 128,
        img_channels: int = 1,
        img_resolution: int | tuple[int, int] = 28,
        noise_std: float = 0.0,
    ) -> None:
        super().__init__()
        if not (math.isfinite(noise_std) and noise_std >= 0):
            raise ValueError(f"noise_std needs to be finite and from 0: got {noise_std}")
        self.latent_shape, self.latent_space, self.preferred_path = (latent_dim,), "z", "slerp"
        self.img_channels, self.img_size = img_channels, sides(img_resolution)
        self.latent_dim, self.noise_std = latent_dim, float(noise_std)
        pixels = math.prod(self.image_shape)
        self.encoder = nn.Linear(pixels, latent_dim)
        self.decoder = nn.Linear(latent_dim, pixels)
        self.freeze()

    @classmethod
    @torch.no_grad()
    def fit(cls, images: Tensor, latent_dim: int, *, noise_std: float = 0.0) -> Linear:
        """The ``latent_dim`` directions in which images vary most, found exactly, in float64 on the CPU.

        Nothing is drawn: the same images give the same generator. A direction in which the images do not vary has code
        0 and changes no image.

        Args:
            images: ``[N, C, H, W]`` float in [-1, 1].
            latent_dim: Numbers in a code, at most ``N - 1`` and the number of pixels.
            noise_std: See the class.

        Raises:
            ValueError: They are not such images, or too few of them for so many numbers.
        """
        if images.ndim != 4 or not images.is_floating_point():
            raise ValueError(f"fit needs float images [N, C, H, W] in [-1, 1]: got {images.dtype} {list(images.shape)}")
        flat = images.flatten(1).cpu().double()
        most = min(len(flat) - 1, flat.shape[1])
        if not 1 <= latent_dim <= most:
            raise ValueError(
                f"latent_dim needs to be in [1, {most}] for {len(flat)} images of {flat.shape[1]} numbers: "
                f"got {latent_dim}"
            )
        mean = flat.mean(0)
        basis, deviation = _principal_directions(flat - mean, latent_dim)
        with torch.random.fork_rng(devices=[]):  # the layers' first weights are drawn, and replaced below
            network = cls(latent_dim, images.shape[1], (images.shape[2], images.shape[3]), noise_std)
        whiten = basis / deviation.where(deviation > 0, torch.inf)[:, None]
        network.encoder.weight.copy_(whiten)
        network.encoder.bias.copy_(-whiten @ mean)
        network.decoder.weight.copy_((basis * deviation[:, None]).T)
        network.decoder.bias.copy_(mean)
        return network

    def encode(self, images: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` in [-1, 1] to codes ``[B, latent_dim]``."""
        codes: Tensor = self.encoder(images.flatten(1).to(self.dtype)).float()
        return codes

    def decode(self, latents: Tensor) -> Tensor:
        """Codes ``[B, latent_dim]`` to images ``[B, C, H, W]``, clipped to [-1, 1]."""
        self.check_latents(latents)
        pixels: Tensor = self.decoder(latents.to(self.dtype)).float()
        if self.noise_std and len(latents):
            pixels = pixels + self.noise_std * self._noise_of(latents, pixels.shape[1])
        return pixels.clamp(-1, 1).view(-1, *self.image_shape)

    def _noise_of(self, latents: Tensor, size: int) -> Tensor:
        """Standard normal numbers ``[B, size]``; those of a code depend on its float32 values alone."""
        keys = latents.detach().float().cpu().contiguous().view(torch.int32).tolist()
        streams = [keyed_generator("linear-noise", *key) for key in keys]
        drawn = [torch.randn(size, generator=stream, dtype=torch.float32, device="cpu") for stream in streams]
        return torch.stack(drawn).to(latents.device)


def _principal_directions(centred: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first principal directions ``[count, P]`` of centred rows ``[N, P]``, and their standard deviations.

    Found from the smaller of the two Gram matrices. The largest entry of a direction is positive. The deviation is 0
    where there is nothing but rounding; that direction is 0 as well.
    """
    rows, size = centred.shape
    wide = size > rows
    gram = centred @ centred.T if wide else centred.T @ centred
    values, vectors = (part.flip(-1) for part in torch.linalg.eigh(gram))
    values, vectors = values[:count].clamp(min=0), vectors[:, :count]
    there = values > RANK_TOLERANCE * values[0]
    basis = (vectors.T @ centred) / values.clamp_min(1e-300).sqrt()[:, None] if wide else vectors.T
    largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
    basis = torch.where(there[:, None], basis * torch.where(largest < 0, -1.0, 1.0), 0.0)
    return basis, torch.where(there, (values / (rows - 1)).sqrt(), 0.0)
