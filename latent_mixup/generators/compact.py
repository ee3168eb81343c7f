"""A compact generator for small images: an MLP autoencoder whose codes live on a sphere."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from latent_mixup.classifiers import PaperFeatures
from latent_mixup.functional import on_sphere
from latent_mixup.generators.base import Generator, check_square


class SkipMLP(nn.Module):
    """An MLP with a straight linear path beside it: the linear part is PCA's, the rest is what it adds."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers[:-1])
        self.skip = nn.Linear(sizes[0], sizes[-1])

    def forward(self, x: Tensor) -> Tensor:
        """``[B, sizes[0]]`` to ``[B, sizes[-1]]``."""
        out: Tensor = self.body(x) + self.skip(x)
        return out


class CompactGenerator(Generator):
    """Decoder and encoder for small images, made to be cheap beside the classifier that it feeds.

    A code is a direction: ``decode`` projects it onto the sphere of radius ``sqrt(z_dim)``, so its length
    never matters and codes are mixed along the sphere (``slerp``). Trained by
    :func:`latent_mixup.training.train_compact`: the decodes of *mixed* codes are judged by a critic, and
    part of the codes carry noise, so that a code with noise decodes to a coarser image of the same thing.

    Args:
        z_dim: Numbers in a code.
        img_channels: Channels of an image; 1 carries the paper's feature network as ``features``.
        img_resolution: Height and width, in pixels.
        decoder_widths: Hidden layers of the decoder.
        encoder_widths: Hidden layers of the encoder.

    Reference: critic on decoded mixes: Beckham et al., "On Adversarial Mixup Resynthesis" (2019), section 2.

    Example:
        >>> CompactGenerator(z_dim=8).decode(torch.randn(2, 8)).shape
        torch.Size([2, 1, 28, 28])
    """

    img_resolution: int
    decode_batches = 8  # 512 codes take 0.7 of the time of eight times 64

    def __init__(
        self,
        z_dim: int = 128,
        img_channels: int = 1,
        img_resolution: int = 28,
        decoder_widths: Sequence[int] = (512, 1024),
        encoder_widths: Sequence[int] = (512, 256),
    ) -> None:
        super().__init__()
        check_square(img_resolution, type(self).__name__)
        self.latent_shape = (z_dim,)
        self.latent_space = "z"
        self.img_channels = img_channels
        self.img_resolution = img_resolution
        self.preferred_path = "slerp"
        self.z_dim, self.decoder_widths, self.encoder_widths = z_dim, tuple(decoder_widths), tuple(encoder_widths)
        pixels = img_channels * img_resolution**2
        self.decoder = SkipMLP((z_dim, *decoder_widths, pixels))
        self.encoder = SkipMLP((pixels, *encoder_widths, z_dim))
        if (img_channels, img_resolution) == (1, 28):
            self.features = PaperFeatures()
        self.latent_mean: Tensor
        self.latent_factor: Tensor
        self.register_buffer("latent_mean", torch.zeros(z_dim))
        self.register_buffer("latent_factor", torch.eye(z_dim))
        self.freeze()

    def decode(self, latents: Tensor) -> Tensor:
        """Codes ``[B, z_dim]`` of any length to images ``[B, C, R, R]`` in [-1, 1]."""
        if latents.shape[1:] != self.latent_shape:
            self.check_latents(latents)  # raises
        pixels = torch.tanh(self.decoder(on_sphere(latents.float()).to(self.decoder.skip.weight.dtype))).float()
        return pixels.view(-1, self.img_channels, self.img_resolution, self.img_resolution)

    def encode(self, images: Tensor) -> Tensor:
        """Images ``[B, C, R, R]`` in [-1, 1] to codes ``[B, z_dim]`` on the sphere."""
        return on_sphere(self.encoder(images.flatten(1).to(self.dtype)).float())

    def from_noise(self, noise: Tensor, targets: Tensor | None = None) -> Tensor:
        """Codes of a Gaussian fitted to the encoded training images, from noise ``[n, z_dim]``; on the sphere."""
        return on_sphere(self.latent_mean.float() + noise @ self.latent_factor.float().T)

    def mean_latent(self) -> Tensor:
        """The mean of the encoded training images, ``[z_dim]``."""
        return self.latent_mean.float()

    def fit_prior(self, latents: Tensor) -> None:
        """Set the Gaussian that ``sample_latents`` draws from: the mean and covariance of ``[N, z_dim]``."""
        self.latent_mean.copy_(latents.mean(0))
        covariance = torch.cov(latents.T.double())
        covariance.diagonal().add_(1e-6)
        self.latent_factor.copy_(torch.linalg.cholesky(covariance))
