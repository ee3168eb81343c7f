"""An autoencoder of diffusers in the place of a GAN: encode the images once, then train on mixes of their codes.

python examples/autoencoder.py                             a TAESD from the Hub, 10 MB
python examples/autoencoder.py stabilityai/sd-vae-ft-mse   the VAE of Stable Diffusion, 335 MB; or a folder
python examples/autoencoder.py --tiny                      random weights, no network: it shows the lines, its images
                                                           are noise and teach nothing

Needs the extra: pip install "latent-mixup[diffusers]"
"""

from __future__ import annotations

import argparse
import sys

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Subset

import latent_mixup as lm
from latent_mixup.bundled import BundledImages
from latent_mixup.classifiers import PaperCNN

DEFAULT = "madebyollin/taesd"


def autoencoder(name: str | None, resolution: int, channels: int) -> lm.generators.DiffusersVAE:
    if name is not None:
        return lm.generators.DiffusersVAE.from_diffusers(name, img_resolution=resolution, img_channels=channels)
    widths = {"encoder_block_out_channels": [8] * 4, "decoder_block_out_channels": [8] * 4}
    return lm.generators.DiffusersVAE("AutoencoderTiny", widths, img_resolution=resolution, img_channels=channels)


def main(name: str | None = DEFAULT, count: int = 1000, epochs: int = 1) -> lm.LatentBank:
    torch.manual_seed(0)
    images = Subset(BundledImages("fashion-mnist"), range(count))  # 28x28, grey; in the place of yours

    generator = autoencoder(name, resolution=28, channels=1)
    bank = lm.invert(images, generator, steps=0)  # one pass of the encoder; any data set, no training
    assert bank.mse is not None
    print(f"{bank}, mean mse {bank.mse.mean():.4f}")

    loader = DataLoader(images, batch_size=50, shuffle=True)
    mixed = lm.LatentMixupLoader(loader, generator, bank, prob=0.5)  # the line that changes

    model = PaperCNN()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for epoch in range(epochs):
        for batch, targets in mixed:
            loss = F.cross_entropy(model(batch), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
    return bank


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default=DEFAULT, help="Hub id or folder of an autoencoder of diffusers")
    parser.add_argument("--tiny", action="store_true", help="random weights instead: its images are noise")
    parser.add_argument("--count", type=int, default=1000, help="images used")
    arguments = parser.parse_args()
    try:
        main(None if arguments.tiny else arguments.name, arguments.count)
    except lm.hub.HubError as error:  # one sentence, which says what to do
        sys.exit(f"{error}; or see the lines with --tiny")
