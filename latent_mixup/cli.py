"""The command line: ``latent-mixup COMMAND``."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

FOLDER = click.Path(file_okay=False, path_type=Path)
TORCHVISION_CLASSES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}
STYLEGAN2_OPTIONS = ("channel_base", "channel_max", "conditional", "ada", "device")  # of train-generator
RESTYLE_OPTIONS = ("passes", "backbone", "channels", "layers", "loss")  # of train-encoder


@click.group()
@click.version_option(package_name="latent-mixup")
def main() -> None:
    """Train image classifiers on mixes of latent codes."""


def one_sentence(command: Callable[..., None]) -> Callable[..., None]:
    """Show what a user can mend as one sentence and exit with 1, instead of a traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
            raise click.ClickException(" ".join(str(error).split())) from error

    return wrapped


@main.command()
@click.option("--out", type=FOLDER, default=Path("latent-mixup-demo"), show_default=True, help="Folder for results.")
@click.option("--seed", type=int, default=0, show_default=True)
@one_sentence
def demo(out: Path, seed: int) -> None:
    """Train a classifier in six ways on the bundled data: a table and a picture, in a few minutes."""
    from latent_mixup.demo import demo_table, run_demo

    record = run_demo(out, seed=seed)
    click.echo(demo_table(record))
    click.echo(f"\n{out / 'demo.json'} and {out / 'mixes.png'} written; {record['seconds']:.0f} seconds")


@main.command()
@click.argument("name")
@click.option("--bank", help="Folder, bundled name or Hub id of the bank; default: NAME.")
@click.option(
    "--pairs", multiple=True, required=True, metavar="CLASS,CLASS", help="Two classes, by name or number; repeatable."
)
@click.option("--rows", type=click.IntRange(1), default=4, show_default=True, help="Rows a pair of classes.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("preview.png"), show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@one_sentence
def preview(name: str, bank: str | None, pairs: tuple[str, ...], rows: int, out: Path, seed: int) -> None:
    """Draw mixes of chosen classes with the generator NAME (folder, bundled name or Hub id)."""
    from latent_mixup import LatentBank, hub, load_generator
    from latent_mixup.preview import preview_sheet

    chosen = []
    for pair in pairs:
        first, comma, second = pair.partition(",")
        if not comma or "," in second:
            raise ValueError(f"--pairs needs two classes with a comma between them: got {pair!r}")
        chosen.append((first, second))
    codes = LatentBank.from_pretrained(bank or name)
    sheet = preview_sheet(load_generator(name), codes, chosen, rows=rows, seed=seed)
    hub.write_folder(out.parent, {out.name: sheet})
    click.echo(f"{out} written")


@main.command("invert")
@click.argument("generator")
@click.option("--dataset", type=click.Choice(list(TORCHVISION_CLASSES)), required=True, help="What to invert.")
@click.option("--data-root", type=FOLDER, required=True, help="Where torchvision finds the data set.")
@click.option("--test", is_flag=True, help="The test images; default: the training images.")
@click.option("--out", type=FOLDER, required=True, help="Folder of the run and the bank; started again, it resumes.")
@click.option("--loss", type=click.Choice(["features", "pixels"]), default="features", show_default=True)
@click.option("--steps", type=click.IntRange(0), default=1000, show_default=True, help="Gradient steps an image.")
@click.option("--lr", type=float, default=0.03, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@click.option("--shard", default="0/1", show_default=True, metavar="i/n", help="Every n-th chunk, from the i-th.")
@click.option("--device", help="Where to decode, e.g. cuda; default: the CPU.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; default: all cores.")
@one_sentence
def invert_command(
    generator: str,
    dataset: str,
    data_root: Path,
    test: bool,
    out: Path,
    loss: str,
    steps: int,
    lr: float,
    batch_size: int,
    shard: str,
    device: str | None,
    threads: int | None,
) -> None:
    """Find a latent code of GENERATOR (folder, bundled name or Hub id) for every image of a data set."""
    import torch

    from latent_mixup import invert, load_generator
    from latent_mixup.inversion import pixel_mse

    if threads:
        torch.set_num_threads(threads)
    index, slash, count = shard.partition("/")
    if not (slash and index.isdigit() and count.isdigit()):
        raise ValueError(f"--shard needs i/n, such as 0/4: got {shard!r}")
    bank = invert(
        torchvision_dataset(dataset, data_root, train=not test),
        load_generator(generator),
        out=out,
        loss=pixel_mse if loss == "pixels" else None,
        steps=steps,
        lr=lr,
        batch_size=batch_size,
        device=device,
        shard=(int(index), int(count)),
    )
    assert bank.mse is not None
    mean, median, p95 = bank.mse.mean(), bank.mse.median(), bank.mse.quantile(0.95)
    click.echo(f"{out}: {len(bank):,} codes, mse mean {mean:.4f}, median {median:.4f}, 95 % below {p95:.4f}")
    set_aside = bank.metadata["set_aside"]
    if set_aside:
        index, error = next(iter(set_aside.items()))
        click.echo(f"{len(set_aside):,} images could not be read and have no row; image {index}: {error}")
    failed = int((bank.status != 0).sum()) if bank.status is not None else 0
    if failed:
        raise ValueError(f"{failed} images have no finite code: their rows have status 1 in {out}")


@main.command("report")
@click.argument("bank")
@click.option("--generator", required=True, help="Folder, bundled name or Hub id of the generator of the codes.")
@click.option("--dataset", type=click.Choice(list(TORCHVISION_CLASSES)), required=True, help="What was inverted.")
@click.option("--data-root", type=FOLDER, required=True, help="Where torchvision finds the data set.")
@click.option("--test", is_flag=True, help="The test images; default: the training images.")
@click.option("--out", type=FOLDER, required=True, help="Folder for report.png and report.json.")
@click.option("--columns", type=click.IntRange(1), default=5, show_default=True, help="Rows of the bank in a line.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random rows.")
@click.option("--device", help="Where to decode, e.g. cuda; default: the CPU.")
@one_sentence
def report_command(
    bank: str,
    generator: str,
    dataset: str,
    data_root: Path,
    test: bool,
    out: Path,
    columns: int,
    seed: int,
    device: str | None,
) -> None:
    """Say how good the codes of BANK (folder, bundled name or Hub id) are: a page of figures, and their numbers."""
    from latent_mixup import LatentBank, load_generator
    from latent_mixup.inversion.report import PAGE_FILE, report
    from latent_mixup.inversion.report_page import report_sentence, report_table

    images = torchvision_dataset(dataset, data_root, train=not test)
    decoder = load_generator(generator).to(device or "cpu")
    record = report(LatentBank.from_pretrained(bank), images, decoder, out, columns=columns, seed=seed)
    click.echo(report_table(record))
    click.echo(f"\n{report_sentence(record)}\n{out / PAGE_FILE} and report.json written")


@main.command("info")
@click.argument("generator")
@click.option("--json", "as_json", is_flag=True, help="For programs: JSON.")
@click.option("--self-test/--no-self-test", default=True, help="Whether to test it as well.  [default: test]")
@click.option(
    "--images", type=click.IntRange(1), help="Images to invert again; default: 4, down to 2 for a large network."
)
@click.option(
    "--steps", type=click.IntRange(1), help="Gradient steps an image; default: 100, down to 60 for a large network."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--sheet", type=click.Path(dir_okay=False, path_type=Path), help="Draw two rows of samples: a PNG.")
@click.option("--device", help="Where to decode, e.g. cuda; default: the CPU.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; default: all cores.")
@one_sentence
def info_command(
    generator: str,
    as_json: bool,
    self_test: bool,
    images: int | None,
    steps: int | None,
    seed: int,
    sheet: Path | None,
    device: str | None,
    threads: int | None,
) -> None:
    """Say what GENERATOR (folder, bundled name or Hub id) is, and test it on images of its own making.

    Exits with 1 where the test fails: the generator is broken, or was converted wrongly. It cannot see everything: a
    wrong network that is smooth passes. --sheet lets you look at what it makes.
    """
    import torch

    from latent_mixup import hub, inversion, load_generator
    from latent_mixup.info import effort, generator_info, info_json, info_text, sample_sheet, self_test_text

    if not self_test and (images or steps):
        raise ValueError("--images and --steps belong to the self test: leave them out, or leave out --no-self-test")
    if threads:
        torch.set_num_threads(threads)
    folder = hub.locate(generator, "generator")
    network = load_generator(folder).to(device or "cpu")
    facts = generator_info(network, folder)
    if sheet:
        hub.write_folder(sheet.parent, {sheet.name: sample_sheet(network, seed=seed)})
    if not as_json:
        click.echo(info_text(facts))
    settings = {**effort(facts.decode_multiply_adds), **_given(images=images, steps=steps)}
    result = inversion.self_test(network, seed=seed, **settings) if self_test else None
    if as_json:
        click.echo(info_json(facts, result))
    elif result:
        click.echo(f"\n{self_test_text(result)}")
    if sheet and not as_json:
        click.echo(f"{sheet} written")
    if result and not result.passed:
        raise SystemExit(1)


@main.command("convert")
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("out", type=FOLDER)
@one_sentence
def convert_command(path: Path, out: Path) -> None:
    """Convert somebody else's file to a folder of ours; nothing in the file is executed.

    PATH is a StyleGAN2 network (.pkl of stylegan2-ada-pytorch, stylegan3 or TensorFlow's StyleGAN2; .pt of
    rosinality) or the paper's latents (grad_latents_*.npy).
    """
    from latent_mixup import LatentBank
    from latent_mixup.convert import convert

    result = convert(path, out)
    what = "bank" if isinstance(result, LatentBank) else "generator"
    click.echo(f"{out}: {what} with latents of {result.latent_shape}, digest {result.digest()[:12]}; see its README.md")


@main.command("train-generator")
@click.option("--arch", type=click.Choice(["compact", "stylegan2"]), default="compact", show_default=True)
@click.option("--dataset", type=click.Choice(list(TORCHVISION_CLASSES)), required=True, help="What to train on.")
@click.option("--data-root", type=FOLDER, required=True, help="Where torchvision finds the data set.")
@click.option("--out", type=FOLDER, required=True, help="Folder of the run; started again, it resumes.")
@click.option("--steps", type=click.IntRange(1), help="Default: 20,000, and 25,000 for stylegan2.")
@click.option(
    "--z-dim", type=click.IntRange(2), default=128, show_default=True, help="Numbers in a code z, and in a w."
)
@click.option("--channel-base", type=click.IntRange(8), default=512, show_default=True, help="stylegan2: see below.")
@click.option("--channel-max", type=click.IntRange(1), default=64, show_default=True, help="stylegan2: see below.")
@click.option("--conditional", is_flag=True, help="stylegan2: with classes.")
@click.option("--ada", is_flag=True, help="stylegan2: adaptive augmentation, for fewer than some 50,000 images.")
@click.option("--batch-size", type=click.IntRange(1), help="Images a step. Default: 128, and 32 for stylegan2.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="stylegan2: where to train, e.g. cuda.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; default: all cores.")
@one_sentence
def train_generator(arch: str, dataset: str, data_root: Path, out: Path, threads: int | None, **settings: Any) -> None:
    """Train a generator, with sample sheets; resumable.

    compact: an autoencoder with a critic for 28x28 grey images. stylegan2: for images of any size; they get a black
    border up to the next power of two. Its layers have min(channel-base / resolution, channel-max) channels; the
    network that NVIDIA published for CIFAR-10 has --channel-base 32768 --channel-max 512 --z-dim 512.
    """
    import torch

    from latent_mixup.bank import fingerprint

    _refuse_options(STYLEGAN2_OPTIONS, "stylegan2", arch)
    if threads:
        torch.set_num_threads(threads)
    data = torchvision_dataset(dataset, data_root, train=True)
    images = uint8_images(data)
    facts = {"name": dataset, "dataset": {"name": dataset, **fingerprint(data)}}
    started = time.perf_counter()
    train = {"compact": _train_compact, "stylegan2": _train_stylegan2}[arch]
    generator = train(images, torch.as_tensor(data.targets), out, facts, **settings)
    click.echo(f"{out}: {generator.metadata['name']}, digest {generator.digest()[:12]}")
    click.echo(f"this call took {(time.perf_counter() - started) / 60:.1f} minutes")


def _refuse_options(options: tuple[str, ...], owner: str, arch: str) -> None:
    """Raise ``ValueError`` where an option of the architecture ``owner`` was given that ``arch`` has no use for."""
    source = click.get_current_context().get_parameter_source
    given = [f"--{name.replace('_', '-')}" for name in options if source(name) is ParameterSource.COMMANDLINE]
    if given and arch != owner:
        raise ValueError(f"{arch} has no {' and no '.join(given)}: leave out, or pass --arch {owner}")


@main.command("train-encoder")
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
    from latent_mixup.inversion.losses import default_loss
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
        loss=default_loss(decoder) if loss == "features" else None,
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


def _given(**settings: Any) -> dict[str, Any]:
    """Those that are not None: what a recipe does not leave to its defaults."""
    return {name: value for name, value in settings.items() if value is not None}


def _train_compact(images: Any, labels: Any, out: Path, facts: dict[str, Any], **settings: Any) -> Any:
    from latent_mixup.training import CompactRecipe, train_compact

    chosen = {name: settings[name] for name in ("steps", "batch_size", "seed")}
    return train_compact(
        images, labels, out, recipe=CompactRecipe(**_given(**chosen)), z_dim=settings["z_dim"], facts=facts
    )


def _train_stylegan2(images: Any, labels: Any, out: Path, facts: dict[str, Any], **settings: Any) -> Any:
    from latent_mixup.training import StyleGAN2Recipe, pad_to_power_of_two, train_stylegan2

    padded = pad_to_power_of_two(images)
    border = (padded.shape[-1] - images.shape[-1]) // 2
    if border:
        click.echo(f"images get a black border of {border} px: {images.shape[-1]} px become {padded.shape[-1]}")
    chosen = {name: settings[name] for name in ("steps", "batch_size", "seed")}
    network = {name: settings[name] for name in ("z_dim", "channel_base", "channel_max")}
    return train_stylegan2(
        padded,
        labels,
        out,
        network={
            **network,
            "w_dim": settings["z_dim"],
            "c_dim": int(labels.max()) + 1 if settings["conditional"] else 0,
        },
        recipe=StyleGAN2Recipe(**_given(**chosen, ada_target=0.6 if settings["ada"] else None)),
        facts={**facts, "border": border},
        device=settings["device"],
    )


def torchvision_dataset(name: str, root: Path, *, train: bool) -> Any:
    """A torchvision data set that lies under ``root``; nothing is downloaded.

    Raises:
        FileNotFoundError: It does not lie there.
    """
    import torchvision.datasets

    try:
        return getattr(torchvision.datasets, TORCHVISION_CLASSES[name])(root, train=train, download=False)
    except RuntimeError as cause:
        raise FileNotFoundError(
            f"{root} has no {TORCHVISION_CLASSES[name]} as torchvision lays it out: "
            f"expected {root / TORCHVISION_CLASSES[name] / 'raw'}; pass --data-root"
        ) from cause


def uint8_images(dataset: Any) -> Any:
    """All images of a torchvision data set: ``[N, C, H, W]`` uint8."""
    import torch

    images = torch.as_tensor(dataset.data)
    return images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
