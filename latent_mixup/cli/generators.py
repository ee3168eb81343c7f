"""``info`` and ``convert``: facts about a generator, and other people's files as ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from latent_mixup.cli import shared

if TYPE_CHECKING:
    from latent_mixup.generators import Generator

PROBE_STEPS = 100  # per image, of a generator without an encoder


@click.command("info")
@click.argument("generator")
@click.option(
    "--self-test/--no-self-test", default=True, show_default=False, help="Run the self-test.  [default: run it]"
)
@click.option(
    "--images",
    type=click.IntRange(1),
    help="Images that the self-test inverts; default: 4, down to 2 for a large network.",
)
@click.option(
    "--steps", type=click.IntRange(1), help="Gradient steps per image; default: 100, down to 60 for a large network."
)
@click.option("--seed", type=int, default=0, help="Seed of the self-test, the sheet and the check of codes.")
@click.option("--sheet", type=shared.NEW_FILE, help="Write a PNG with two rows of samples.")
@click.option(
    "--probe",
    metavar="DATA",
    help=f"Check what mixes of codes of these images can be expected to give; takes minutes. {shared.DATA_HELP}.",
)
@shared.root_option
@shared.download_option
@shared.key_options
@click.option(
    "--probe-images", type=click.IntRange(100), default=2_000, help="Images to examine; as many others train the judge."
)
@shared.device_option
@shared.threads_option
@shared.one_sentence
def info_command(
    generator: str,
    self_test: bool,
    images: int | None,
    steps: int | None,
    seed: int,
    sheet: Path | None,
    probe: str | None,
    data_root: Path | None,
    download: bool,
    image_key: str | None,
    label_key: str | None,
    probe_images: int,
    device: str,
) -> None:
    """Show the facts of GENERATOR (folder, bundled name, Hub id or module:function) and run its self-test.

    The self-test inverts images that the generator made itself. Exit code 1: it failed, so the generator is broken or
    was converted wrongly. A wrong network that is smooth passes: look at the samples of --sheet.

    With --probe it compares codes with pixels and with PCA, and says go or no-go: whether mixes of the codes can be
    expected to help. Codes come from the generator's encoder; without one, from a short inversion.
    """
    from latent_mixup import files, hub, inversion
    from latent_mixup.pictures import sample_sheet
    from latent_mixup.quality import check_text
    from latent_mixup.quality.info import effort, generator_info, info_record, info_text, self_test_text

    if not self_test and (images or steps):
        raise ValueError("--images and --steps belong to the self test: leave them out, or leave out --no-self-test")
    keys: shared.Columns = {"image_key": image_key, "label_key": label_key}
    typed = shared.given(data_root=data_root, download=download or None, **keys)
    if typed and not probe:
        wrong = next(iter(typed)).replace("_", "-")
        raise ValueError(f"--{wrong} belongs to --probe: leave it out, or name the data set")
    data = shared.open_data(probe, data_root, download=download, **keys) if probe else None
    folder = None if shared.is_python_name(generator) else hub.locate(generator, "generator")
    network = shared.generator_named(str(folder or generator), device)
    facts = generator_info(network, folder)
    if sheet:
        files.write_folder(sheet.parent, {sheet.name: sample_sheet(network, seed=seed)})
    as_json = shared.as_json()  # what is printed part by part comes as one object then
    if not as_json:
        click.echo(info_text(facts))
    settings = {**effort(facts["decode_multiply_adds"]), **shared.given(images=images, steps=steps)}
    result = inversion.self_test(network, seed=seed, **settings) if self_test else None
    if result and not as_json:
        click.echo(f"\n{self_test_text(result)}")
    codes = None
    if probe:
        codes = _checked_codes(network, data, probe_images, seed, shared.keys_in_samples(probe, keys))
    if as_json:
        shared.answer("", info_record(facts, result, codes))
    elif codes:
        click.echo(f"\n{check_text(codes)}")
    if sheet and not as_json:
        click.echo(f"{sheet} written")
    if result and not result.passed:
        raise SystemExit(1)


def _checked_codes(generator: Generator, dataset: Any, count: int, seed: int, keys: shared.Columns) -> dict[str, Any]:
    """The check of codes of at most ``count`` images, with as many others; of half of them where there are fewer."""
    import torch
    from torch.utils.data import Subset

    from latent_mixup import invert
    from latent_mixup.quality.code_check import MIN_ROWS, check_codes
    from latent_mixup.sampling import keyed_generator

    order = torch.randperm(len(dataset), generator=keyed_generator("probe-images", seed)).tolist()
    count = min(count, len(order) // 2)
    examined, others = Subset(dataset, order[:count]), Subset(dataset, order[count : 2 * count])
    steps = 0 if generator.has_encoder else PROBE_STEPS
    bank = invert(examined, generator, steps=steps, loss="pixels", seed=seed, **keys)
    return check_codes(bank, examined, generator, others=others, limit=max(count, MIN_ROWS), seed=seed)


@click.command("convert")
@click.argument("path")
@click.argument("out", type=shared.FOLDER)
@click.option(
    "--resolution",
    metavar="PIXELS",
    callback=shared.pixels,
    help="Size of your images, 64 or 96x160 (height x width); for an autoencoder.",
)
@click.option("--channels", type=click.Choice(["1", "3"]), help="1 for grey images; for an autoencoder; default: 3.")
@click.option("--subfolder", help="Folder of the autoencoder inside PATH; vae in a whole pipeline.")
@shared.one_sentence
def convert_command(
    path: str, out: Path, resolution: int | tuple[int, int] | None, channels: str | None, subfolder: str | None
) -> None:
    """Convert other people's files to a generator or bank folder; nothing in them is executed.

    PATH is a StyleGAN2 network (.pkl of stylegan2-ada-pytorch, stylegan3 or TensorFlow's StyleGAN2; .pt of
    rosinality), the paper's latents (grad_latents_*.npy) or NVIDIA's projected_w.npz. With --resolution it is an
    AutoencoderKL or AutoencoderTiny of diffusers: a folder, or a Hub id such as stabilityai/sd-vae-ft-mse[@revision].
    """
    from latent_mixup import LatentBank, generators, hub
    from latent_mixup.convert import convert

    result: LatentBank | generators.Generator
    if resolution is not None:
        settings = shared.given(img_channels=channels and int(channels), subfolder=subfolder)
        result = generators.DiffusersVAE.from_diffusers(path, img_resolution=resolution, **settings)
        result.metadata["command"] = shared.typed_command()
        result.save_pretrained(out)
    elif channels or subfolder or Path(path).is_dir() or (hub.is_hub_id(path) and not Path(path).is_file()):
        raise ValueError(f"an autoencoder of diffusers, as {path} may be, needs --resolution, the size of your images")
    else:
        result = convert(path, out, command=shared.typed_command())
    what, digest = "bank" if isinstance(result, LatentBank) else "generator", result.digest()
    shared.answer(
        f"{out}: {what} with latents of {result.latent_shape}, digest {digest[:12]}; see its README.md",
        {"out": str(out), "kind": what, "latent_shape": result.latent_shape, "digest": digest},
    )
