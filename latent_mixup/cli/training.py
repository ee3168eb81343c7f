"""``train-generator`` and ``train-encoder``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from latent_mixup.cli import shared

DATASET = click.Choice(list(shared.TORCHVISION_CLASSES))
STYLEGAN2_OPTIONS = ("channel_base", "channel_max", "conditional", "ada")  # of train-generator
GIVEN = (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)
RESTYLE_OPTIONS = ("passes", "backbone", "channels", "layers", "loss", "lpips_weights", "download_lpips")

run_options = shared.several(
    click.option("--data-root", type=shared.FOLDER, help="Folder where torchvision finds the data set."),
    click.option("--out", type=shared.FOLDER, required=True, help="Folder of the run; started again, it resumes."),
    click.option("--seed", type=int, default=0, help="Seed of the first weights and the draws."),
    shared.device_option,
    shared.threads_option,
)


@click.command("train-generator")
@click.option("--arch", type=click.Choice(["compact", "dcgan", "stylegan2", "vae"]), default="compact")
@click.option("--dataset", type=DATASET, required=True, help="Data set to train on.")
@run_options
@click.option(
    "--steps",
    type=click.IntRange(1),
    help="Training steps. Default: 20,000; stylegan2: 25,000; vae: 10,000; dcgan: see --epochs.",
)
@click.option("--epochs", type=click.IntRange(1), help="dcgan: passes over the images. Default: 80.")
@click.option(
    "--z-dim", type=click.IntRange(2), help="Numbers in a code z, and in a code w. Default: 128; vae: 32; dcgan: 1024."
)
@click.option("--channel-base", type=click.IntRange(8), default=512, help="stylegan2: width of its layers, see above.")
@click.option("--channel-max", type=click.IntRange(1), default=64, help="stylegan2: width of its layers, see above.")
@click.option("--conditional", is_flag=True, help="stylegan2: train with classes.")
@click.option("--ada", is_flag=True, help="stylegan2: adaptive augmentation, for fewer than about 50,000 images.")
@click.option("--batch-size", type=click.IntRange(1), help="Images a step. Default: 128; stylegan2: 32.")
@shared.one_sentence
def train_generator(arch: str, dataset: str, data_root: Path | None, out: Path, device: str, **settings: Any) -> None:
    """Train a generator, with sheets of samples; resumable.

    compact: an autoencoder with a critic, for small images. vae: a variational autoencoder, trained on the evidence
    lower bound alone. dcgan: the paper's GAN, for images up to 32 px. stylegan2: for images of any size, which get a
    black border up to the next power of two. Its layers have min(channel-base / resolution, channel-max) channels; the
    network that NVIDIA published for CIFAR-10 has --channel-base 32768 --channel-max 512 --z-dim 512.
    """
    from latent_mixup import training

    _refuse_options(STYLEGAN2_OPTIONS, "stylegan2", arch)
    _refuse_options(("epochs",), "dcgan", arch)
    if arch == "dcgan" and settings["steps"]:
        raise ValueError("dcgan is trained for whole epochs: pass --epochs instead of --steps")
    images, labels, facts = _training_images(dataset, data_root)
    started = time.perf_counter()
    recipe = shared.given(**{name: settings[name] for name in ("epochs", "steps", "batch_size", "seed")})
    network: dict[str, Any] = shared.given(z_dim=settings["z_dim"])
    options: Any = {"facts": {"name": dataset, **facts}, "device": device}
    if arch == "compact":
        compact = training.CompactRecipe(**recipe)
        generator: Any = training.train_compact(images, labels, out, recipe=compact, **network, **options)
    elif arch == "dcgan":
        generator = training.train_dcgan(images, out, network=network, recipe=training.DCGANRecipe(**recipe), **options)
    elif arch == "vae":
        if images.shape[1] == 3:
            network["channels"] = (32, 64)  # the paper's VAE for CIFAR-10 has convolutions
        generator = training.train_vae(images, out, network=network, recipe=training.VAERecipe(**recipe), **options)
    else:
        padded = training.pad_to_power_of_two(images)
        border = (padded.shape[-1] - images.shape[-1]) // 2
        if border:
            shared.say(f"images get a black border of {border} px: {images.shape[-1]} px become {padded.shape[-1]}")
        options["facts"]["border"] = border
        network = {"z_dim": 128, **network, "c_dim": int(labels.max()) + 1 if settings["conditional"] else 0}
        network |= {"w_dim": network["z_dim"], **{name: settings[name] for name in ("channel_base", "channel_max")}}
        stylegan2 = training.StyleGAN2Recipe(**recipe, ada_target=0.6 if settings["ada"] else None)
        generator = training.train_stylegan2(padded, labels, out, network=network, recipe=stylegan2, **options)
    name, digest, minutes = generator.metadata["name"], generator.digest(), (time.perf_counter() - started) / 60
    shared.answer(
        f"{out}: {name}, digest {digest[:12]}\nthis call took {minutes:.1f} minutes",
        {"out": str(out), "name": name, "digest": digest, "minutes": minutes},
    )


@click.command("train-encoder")
@click.argument("generator")
@click.option("--arch", type=click.Choice(["mlp", "restyle"]), default="mlp")
@click.option("--dataset", type=DATASET, help="Real images. Default: generated images.")
@run_options
@click.option("--steps", type=click.IntRange(1), default=3000)
@click.option("--batch-size", type=click.IntRange(1), default=128, help="Images a step.")
@click.option("--lr", type=float, default=1e-3, help="Peak learning rate.")
@click.option("--passes", type=click.IntRange(1), default=3, help="restyle: corrections of a code.")
@click.option("--backbone", default="resnet18", help="restyle: a ResNet of timm.")
@click.option(
    "--channels", metavar="A,B,C,D", help="restyle: channels of the four stages, e.g. 32,64,128,256 for a CPU."
)
@click.option("--layers", metavar="A,B,C,D", help="restyle: blocks of the four stages, e.g. 1,1,1,1 for a CPU.")
@click.option(
    "--loss",
    type=click.Choice(["lpips", "features", "pixels"]),
    default="pixels",
    help="restyle: loss. lpips: 0.9 LPIPS + 0.1 MSE; features: the generator's features + MSE; pixels: MSE.",
)
@shared.lpips_options
@shared.one_sentence
def train_encoder_command(
    generator: str,
    arch: str,
    dataset: str | None,
    data_root: Path | None,
    out: Path,
    device: str,
    **settings: Any,
) -> None:
    """Train an encoder for GENERATOR (folder, bundled name, Hub id or module:function), with sheets; resumable.

    mlp: from pixels to a code, learnt from generated images. restyle: a ResNet that corrects a code in a few passes,
    learnt from real images, or from generated ones without --dataset. Images smaller than the generator's get the
    black border that it was trained with.
    """
    import torch.nn.functional as F

    from latent_mixup.training import EncoderRecipe, train_encoder

    _refuse_options(RESTYLE_OPTIONS, "restyle", arch)
    decoder = shared.generator_named(generator)
    images, _, facts = _training_images(dataset, data_root)
    border = decoder.metadata.get("border", 0)
    if images is not None and border and images.shape[-1] + 2 * border == decoder.img_resolution:
        images = F.pad(images, (border,) * 4)
        shared.say(f"images get a black border of {border} px, as in the generator's training")
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
        loss=shared.pop_loss(decoder, settings),
        facts=facts,
        device=device,
    )
    name = decoder.metadata.get("name") or generator
    kind, digest = type(encoder).__name__, encoder.digest()
    shared.answer(
        f"{out}: {kind} for {name}, digest {digest[:12]}",
        {"out": str(out), "architecture": kind, "generator": name, "digest": digest},
    )


def _refuse_options(options: tuple[str, ...], owner: str, arch: str) -> None:
    """Raise ``ValueError`` for an option of the architecture ``owner`` where ``arch`` is another one."""
    source = click.get_current_context().get_parameter_source
    typed = [f"--{name.replace('_', '-')}" for name in options if source(name) in GIVEN]
    if typed and arch != owner:
        raise ValueError(f"{arch} has no {' and no '.join(typed)}: leave out, or pass --arch {owner}")


def _training_images(name: str | None, root: Path | None) -> tuple[Any, Any, dict[str, Any]]:
    """Images ``[N, C, H, W]`` uint8 and labels ``[N]`` of a data set, if there is one, and facts for the metadata."""
    import torch

    from latent_mixup.bank import fingerprint

    facts: dict[str, Any] = {"command": shared.typed_command(without=shared.PLACE)}
    if name is None:
        return None, None, facts
    if root is None:
        raise ValueError("--dataset needs --data-root, the folder where torchvision finds it")
    data = shared.torchvision_dataset(name, root, train=True)
    facts["dataset"] = {"name": name, **fingerprint(data)}
    return shared.uint8_images(data), torch.as_tensor(data.targets), facts


def _integers(name: str, text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise ValueError(f"--{name} needs integers with commas between them, such as 32,64,128,256: got {text!r}")
    return [int(part) for part in parts]
