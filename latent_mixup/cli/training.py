"""``train-generator`` and ``train-encoder``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from latent_mixup.cli.shared import (
    FOLDER,
    TORCHVISION_CLASSES,
    given,
    loss_for,
    one_sentence,
    torchvision_dataset,
    uint8_images,
)

ARCHITECTURES = ["compact", "dcgan", "stylegan2", "vae"]
STYLEGAN2_OPTIONS = ("channel_base", "channel_max", "conditional", "ada")  # of train-generator
RESTYLE_OPTIONS = ("passes", "backbone", "channels", "layers", "loss")  # of train-encoder


@click.command("train-generator")
@click.option("--arch", type=click.Choice(ARCHITECTURES), default="compact", show_default=True)
@click.option("--dataset", type=click.Choice(list(TORCHVISION_CLASSES)), required=True, help="What to train on.")
@click.option("--data-root", type=FOLDER, required=True, help="Where torchvision finds the data set.")
@click.option("--out", type=FOLDER, required=True, help="Folder of the run; started again, it resumes.")
@click.option(
    "--steps",
    type=click.IntRange(1),
    help="Default: 20,000; for stylegan2 25,000, vae 10,000, dcgan what --epochs makes.",
)
@click.option("--epochs", type=click.IntRange(1), help="dcgan: passes over the images.  [default: 80]")
@click.option(
    "--z-dim",
    type=click.IntRange(2),
    help="Numbers in a code z, and in a w. Default: 128; for vae 32, and 1024 for dcgan.",
)
@click.option("--channel-base", type=click.IntRange(8), default=512, show_default=True, help="stylegan2: see below.")
@click.option("--channel-max", type=click.IntRange(1), default=64, show_default=True, help="stylegan2: see below.")
@click.option("--conditional", is_flag=True, help="stylegan2: with classes.")
@click.option("--ada", is_flag=True, help="stylegan2: adaptive augmentation, for fewer than some 50,000 images.")
@click.option("--batch-size", type=click.IntRange(1), help="Images a step. Default: 128; for stylegan2 32.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="Where to train, e.g. cuda.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; default: all cores.")
@one_sentence
def train_generator(arch: str, dataset: str, data_root: Path, out: Path, threads: int | None, **settings: Any) -> None:
    """Train a generator, with sample sheets; resumable.

    compact: an autoencoder with a critic for 28x28 grey images. vae: a variational autoencoder, of which nothing but
    a good likelihood is asked. dcgan: the paper's GAN for images of up to 32 px. stylegan2: for images of any size;
    they get a black border up to the next power of two. Its layers have min(channel-base / resolution, channel-max)
    channels; the network that NVIDIA published for CIFAR-10 has --channel-base 32768 --channel-max 512 --z-dim 512.
    """
    import torch

    from latent_mixup.bank import fingerprint

    _refuse_options(STYLEGAN2_OPTIONS, "stylegan2", arch)
    _refuse_options(("epochs",), "dcgan", arch)
    if arch == "dcgan" and settings["steps"]:
        raise ValueError("dcgan is trained for whole epochs: pass --epochs instead of --steps")
    if threads:
        torch.set_num_threads(threads)
    data = torchvision_dataset(dataset, data_root, train=True)
    images = uint8_images(data)
    facts = {"name": dataset, "dataset": {"name": dataset, **fingerprint(data)}}
    started = time.perf_counter()
    train = {"compact": _train_compact, "dcgan": _train_dcgan, "stylegan2": _train_stylegan2, "vae": _train_vae}[arch]
    generator = train(images, torch.as_tensor(data.targets), out, facts, **settings)
    click.echo(f"{out}: {generator.metadata['name']}, digest {generator.digest()[:12]}")
    click.echo(f"this call took {(time.perf_counter() - started) / 60:.1f} minutes")


def _refuse_options(options: tuple[str, ...], owner: str, arch: str) -> None:
    """Raise ``ValueError`` where an option of the architecture ``owner`` was given that ``arch`` has no use for."""
    source = click.get_current_context().get_parameter_source
    given = [f"--{name.replace('_', '-')}" for name in options if source(name) is ParameterSource.COMMANDLINE]
    if given and arch != owner:
        raise ValueError(f"{arch} has no {' and no '.join(given)}: leave out, or pass --arch {owner}")


@click.command("train-encoder")
@click.argument("generator")
@click.option("--arch", type=click.Choice(["mlp", "restyle"]), default="mlp", show_default=True)
@click.option("--dataset", type=click.Choice(list(TORCHVISION_CLASSES)), help="Real images; default: generated ones.")
@click.option("--data-root", type=FOLDER, help="Where torchvision finds the data set.")
@click.option("--out", type=FOLDER, required=True, help="Folder of the run; started again, it resumes.")
@click.option("--steps", type=click.IntRange(1), default=3000, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True, help="Images a step.")
@click.option("--lr", type=float, default=1e-3, show_default=True)
@click.option("--passes", type=click.IntRange(1), default=3, show_default=True, help="restyle: corrections of a code.")
@click.option("--backbone", default="resnet18", show_default=True, help="restyle: a ResNet of timm.")
@click.option(
    "--channels", metavar="A,B,C,D", help="restyle: of the backbone's four stages, e.g. 32,64,128,256 for a CPU."
)
@click.option("--layers", metavar="A,B,C,D", help="restyle: blocks of the four stages, e.g. 1,1,1,1 for a CPU.")
@click.option("--loss", type=click.Choice(["pixels", "features"]), default="pixels", show_default=True, help="restyle.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="Where to train, e.g. cuda.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; default: all cores.")
@one_sentence
def train_encoder_command(
    generator: str,
    arch: str,
    dataset: str | None,
    data_root: Path | None,
    out: Path,
    threads: int | None,
    loss: str,
    device: str,
    **settings: Any,
) -> None:
    """Train an encoder for GENERATOR (folder, bundled name or Hub id), with sheets; resumable.

    mlp: from pixels to a code, learnt from generated images. restyle: a ResNet that corrects a code in a few passes,
    learnt from real images, or from generated ones where no --dataset is given. Images smaller than the generator's
    get the black border that it was trained with.
    """
    import torch

    from latent_mixup import load_generator
    from latent_mixup.training import EncoderRecipe, train_encoder

    _refuse_options(RESTYLE_OPTIONS, "restyle", arch)
    if threads:
        torch.set_num_threads(threads)
    decoder = load_generator(generator)
    images, facts = None, dict[str, Any]()
    if dataset is not None:
        if data_root is None:
            raise ValueError("--dataset needs --data-root, the folder where torchvision finds it")
        images, facts = _images_for(decoder, dataset, data_root)
    network: dict[str, Any] = {}
    if arch == "restyle":
        network = {"backbone": settings["backbone"], "passes": settings["passes"]}
        network |= {name: _integers(name, settings[name]) for name in ("channels", "layers") if settings[name]}
    encoder = train_encoder(
        decoder,
        out,
        arch="restyle" if arch == "restyle" else "mlp",
        images_uint8=images,
        network=network,
        recipe=EncoderRecipe(**{name: settings[name] for name in ("steps", "batch_size", "lr", "seed")}),
        loss=loss_for(decoder, loss, None) if loss == "features" else None,
        facts=facts,
        device=device,
    )
    click.echo(f"{out}: {type(encoder).__name__} for {decoder.metadata.get('name')}, digest {encoder.digest()[:12]}")


def _images_for(generator: Any, name: str, root: Path) -> tuple[Any, dict[str, Any]]:
    """The training images ``[N, C, R, R]`` uint8, with the border that the generator was trained with, and facts."""
    import torch.nn.functional as F

    from latent_mixup.bank import fingerprint

    data = torchvision_dataset(name, root, train=True)
    images = uint8_images(data)
    border = generator.metadata.get("border", 0)
    if border and images.shape[-1] + 2 * border == generator.img_resolution:
        images = F.pad(images, (border,) * 4)
        click.echo(f"images get a black border of {border} px, as in the generator's training")
    return images, {"dataset": {"name": name, **fingerprint(data)}}


def _integers(name: str, text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise ValueError(f"--{name} needs integers with commas between them, such as 32,64,128,256: got {text!r}")
    return [int(part) for part in parts]


def _train_compact(images: Any, labels: Any, out: Path, facts: dict[str, Any], **settings: Any) -> Any:
    from latent_mixup.training import CompactRecipe, train_compact

    chosen = {name: settings[name] for name in ("steps", "batch_size", "seed")}
    z_dim = given(z_dim=settings["z_dim"])
    return train_compact(
        images, labels, out, recipe=CompactRecipe(**given(**chosen)), **z_dim, facts=facts, device=settings["device"]
    )


def _train_dcgan(images: Any, labels: Any, out: Path, facts: dict[str, Any], **settings: Any) -> Any:
    from latent_mixup.training import DCGANRecipe, train_dcgan

    chosen = given(**{name: settings[name] for name in ("epochs", "batch_size", "seed")})
    network = given(z_dim=settings["z_dim"])
    return train_dcgan(
        images, out, network=network, recipe=DCGANRecipe(**chosen), facts=facts, device=settings["device"]
    )


def _train_vae(images: Any, labels: Any, out: Path, facts: dict[str, Any], **settings: Any) -> Any:
    from latent_mixup.training import VAERecipe, train_vae

    chosen = given(**{name: settings[name] for name in ("steps", "batch_size", "seed")})
    network = given(z_dim=settings["z_dim"])
    if images.shape[1] == 3:
        network["channels"] = (32, 64)  # the paper's VAE for CIFAR-10 has convolutions
    return train_vae(images, out, network=network, recipe=VAERecipe(**chosen), facts=facts, device=settings["device"])


def _train_stylegan2(images: Any, labels: Any, out: Path, facts: dict[str, Any], **settings: Any) -> Any:
    from latent_mixup.training import StyleGAN2Recipe, pad_to_power_of_two, train_stylegan2

    padded = pad_to_power_of_two(images)
    border = (padded.shape[-1] - images.shape[-1]) // 2
    if border:
        click.echo(f"images get a black border of {border} px: {images.shape[-1]} px become {padded.shape[-1]}")
    chosen = {name: settings[name] for name in ("steps", "batch_size", "seed")}
    width = settings["z_dim"] or 128
    network = {"z_dim": width, "w_dim": width, **{name: settings[name] for name in ("channel_base", "channel_max")}}
    return train_stylegan2(
        padded,
        labels,
        out,
        network={
            **network,
            "c_dim": int(labels.max()) + 1 if settings["conditional"] else 0,
        },
        recipe=StyleGAN2Recipe(**given(**chosen, ada_target=0.6 if settings["ada"] else None)),
        facts={**facts, "border": border},
        device=settings["device"],
    )
