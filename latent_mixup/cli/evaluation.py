"""``evaluate``: the scores of a classifier on a data set."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from latent_mixup.cli import hub_data, shared

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS = ".safetensors"
LIBRARIES = ("timm", "torchvision")
LOOKED_AT = 16  # images that tell how their values become [0, 1]


@click.command("evaluate")
@click.argument("model")
@click.argument("data")
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The model's state_dict as a .safetensors file.",
)
@click.option(
    "--num-classes", type=click.IntRange(2), help="Logits of timm's or torchvision's. Default: DATA's classes."
)
@click.option("--channels", type=click.Choice(["1", "3"]), help="Default: the images' own; torchvision: 3.")
@click.option(
    "--size",
    metavar="PIXELS",
    callback=shared.pixels,
    help="Resize and crop images to this size, 64 or 96x160 (height x width). Default: as they are.",
)
@click.option(
    "--mean",
    metavar="A[,B,C]",
    help="Mean that the model's images are normalised with, in [0, 1]. Default: for RGB that of timm's model, or of "
    "ImageNet for torchvision's; else 0.5.",
)
@click.option("--std", metavar="A[,B,C]", help="Standard deviation, likewise.")
@shared.root_option
@shared.download_option
@shared.key_options
@click.option("--train", is_flag=True, help="Use the training images instead of the test images.")
@click.option("--images", type=click.IntRange(1), help="Number of images. Default: all.")
@click.option("--deepfool-images", type=click.IntRange(0), default=5000, help="Images for DeepFool; 0: leave it out.")
@click.option("--pgd-images", type=click.IntRange(0), default=1000, help="Images for PGD; 0: leave it out.")
@click.option("--pgd-steps", type=click.IntRange(1), default=20, help="Steps of PGD.")
@click.option("--linf-eps", type=float, default=8 / 255, show_default="8/255", help="PGD's L-inf radius, in [0, 1].")
@click.option("--l2-eps", type=float, default=0.5, help="PGD's L2 radius, in [0, 1].")
@click.option("--corruption-images", type=click.IntRange(0), default=1000, help="Images for corruptions; 0: none.")
@click.option("--seed", type=int, default=0, help="Seed of the images' order, PGD's starts and the noise.")
@shared.device_option
@shared.threads_option
@shared.one_sentence
def evaluate_command(
    model: str,
    data: str,
    weights: Path | None,
    num_classes: int | None,
    channels: str | None,
    size: int | tuple[int, int] | None,
    mean: str | None,
    std: str | None,
    data_root: Path | None,
    download: bool,
    image_key: str | None,
    label_key: str | None,
    train: bool,
    images: int | None,
    device: str,
    **settings: Any,
) -> None:
    """Accuracy, calibration, blur, DeepFool, PGD and corruptions of MODEL on DATA, in units of images in [0, 1].

    MODEL is my_module:make, imported also from the current folder: a module, or a function that returns one; or
    timm:NAME or torchvision:NAME with --weights. Nothing is unpickled.

    DATA is mnist, fashion-mnist or cifar10, of which the test images are taken; hf:NAME[@split]; a CSV file of
    path,label lines; or a folder with a folder of images per class. Images whose labels come sorted are taken in a
    random order.
    """
    from latent_mixup import robustness

    by_name = data in shared.TORCHVISION_CLASSES or (data.startswith(hub_data.PREFIX) and "@" not in data)
    if train and not by_name:
        raise ValueError(f"--train goes with data sets by name: got {data}; leave it out")
    columns: shared.Columns = {"image_key": image_key, "label_key": label_key}
    dataset = shared.open_data(data, data_root, test=by_name and not train, download=download, **columns)
    keys = shared.keys_in_samples(data, columns)
    order = _order(dataset, settings["seed"])
    if channels is None and model.startswith("torchvision:"):
        channels = "3"
    num_channels = int(channels) if channels else _own_channels(dataset, order, keys)
    if num_classes is None and model.partition(":")[0] in LIBRARIES:
        num_classes = _num_classes(dataset, keys)
    network, usual, fixed = classifier_named(model, weights, num_classes, num_channels)
    centre, width = (_numbers(name, text, usual[name]) for name, text in (("mean", mean), ("std", std)))
    pixels, labels = _read(dataset, order[:images], num_channels, size or fixed, keys)
    wrapped = robustness.Normalized(network.to(device), centre, width)
    scores = robustness.evaluate(wrapped, pixels, labels, bounds=(0, 1), device=device, progress=True, **settings)
    about = {"model": model, "data": data, "weights": weights and weights.name, "img_shape": list(pixels.shape[1:])}
    shared.answer(
        f"{model} on {data}: images {' x '.join(map(str, pixels.shape[1:]))}, mean {centre}, std {width}\n\n{scores}",
        {**about, "mean": centre, "std": width, **scores},
    )


def classifier_named(
    text: str, weights: Path | None, num_classes: int | None, channels: int
) -> tuple[nn.Module, dict[str, list[float]], int | None]:
    """The classifier that the user typed; see :func:`evaluate_command`.

    Returns:
        It, on the CPU; the ``mean`` and ``std`` that it takes unless the user says otherwise; and the one height and
        width that it takes, None where it takes any.

    Raises:
        ValueError: There is no such model, it has no weights, or they do not fit.
        ImportError: There is no such module, or it has no such name.
        TypeError: It is not a module of torch, and does not return one.
    """
    from torch import nn

    library, _, name = text.partition(":")
    if library in LIBRARIES:
        if weights is None:
            raise ValueError(f"{text} needs --weights FILE{WEIGHTS}: nothing is downloaded")
        build = _timm if library == "timm" else _torchvision
        made, usual, size = build(name, num_classes, channels)
    elif shared.is_python_name(text):
        made, size = shared.imported(text), None
        usual = {"mean": [0.5], "std": [0.5]}
        if callable(made) and not isinstance(made, nn.Module):
            made = made()
        if not isinstance(made, nn.Module):
            raise TypeError(f"{text} needs to be a torch.nn.Module, or to return one: got {type(made).__name__}")
    else:
        raise ValueError(f"MODEL is my_module:make, timm:NAME or torchvision:NAME: got {text!r}")
    if weights is not None:
        _load(made, weights, text)
    return made, usual, size


def _timm(name: str, num_classes: int | None, channels: int) -> tuple[nn.Module, dict[str, list[float]], int | None]:
    import timm

    if not timm.is_model(name):
        raise _unknown(f"timm:{name}", timm.list_models())
    made = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=channels)
    config = made.pretrained_cfg
    usual = {key: list(config[key]) if channels == len(config[key]) else [0.5] for key in ("mean", "std")}
    return made, usual, config["input_size"][-1] if config.get("fixed_input_size") else None


def _torchvision(
    name: str, num_classes: int | None, channels: int
) -> tuple[nn.Module, dict[str, list[float]], int | None]:
    import torchvision.models

    known = torchvision.models.list_models(torchvision.models)
    if name not in known:
        raise _unknown(f"torchvision:{name}", known)
    if channels != 3:
        raise ValueError(f"torchvision's models take RGB images: got --channels {channels}, leave it out")
    made = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    return made, {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}, 224 if name.startswith("vit") else None


def _unknown(text: str, known: list[str]) -> ValueError:
    library, _, name = text.partition(":")
    near = difflib.get_close_matches(name, known, cutoff=0)
    return ValueError(
        f"there is no classifier {text}: did you mean {' or '.join(f'{library}:{each}' for each in near)}?"
    )


def _load(model: nn.Module, weights: Path, text: str) -> None:
    """Read weights into a model, all of them and no others."""
    from safetensors.torch import load_model

    from latent_mixup import files

    if weights.suffix != WEIGHTS:
        raise ValueError(
            f"--weights needs a {WEIGHTS} file, since a pickle can run code: got {weights.name}; write one where you "
            "trust it, with safetensors.torch.save_model(model, path)"
        )
    with files.open_tensors(weights):  # it is whole
        pass
    try:
        load_model(model, weights)
    except RuntimeError as cause:
        raise ValueError(
            f"{weights.name} does not fit {text}: {cause}; --num-classes or --channels may differ"
        ) from cause


def _order(dataset: Any, seed: int) -> list[int]:
    """All indices: in their order where the labels are known and not sorted, else in a random one."""
    import torch

    from latent_mixup.labels import targets_of
    from latent_mixup.sampling import keyed_generator

    targets = targets_of(dataset)
    if targets is not None and targets.ndim == 1 and (targets.diff() < 0).any():
        return list(range(len(dataset)))
    order: list[int] = torch.randperm(len(dataset), generator=keyed_generator("evaluated-images", seed)).tolist()
    return order


def _own_channels(dataset: Any, order: list[int], keys: shared.Columns) -> int:
    from latent_mixup.images import image_key_of, pixel_values
    from latent_mixup.labels import part_of

    sample = dataset[order[0]]
    return len(pixel_values(part_of(sample, image_key_of(sample, keys["image_key"]))))


def _num_classes(dataset: Any, keys: shared.Columns) -> int:
    """The classes that a data set names, or one more than its largest label."""
    from latent_mixup.images import UNIT
    from latent_mixup.inversion.samples import SampleFormat, class_names
    from latent_mixup.labels import label_key_of, labels_of

    key = label_key_of(dataset[0], keys["label_key"])
    names = class_names(dataset, SampleFormat(UNIT, label_key=key))
    count = len(names) if names else int(labels_of(dataset, list(range(len(dataset))), key).max()) + 1
    if count < 2:
        raise ValueError("evaluate needs labels of two classes or more: pass a data set that has them")
    return count


def _read(
    dataset: Any, order: list[int], channels: int, size: int | tuple[int, int] | None, keys: shared.Columns
) -> tuple[Tensor, Tensor]:
    """Images ``[N, C, H, W]`` in [0, 1] and labels ``[N]``.

    Raises:
        ValueError: An image has another size, or colours for a grey model; or a label is missing or soft.
    """
    import torch

    from latent_mixup.generators.base import sides
    from latent_mixup.images import detect_format, image_key_of, pixel_values, to_unit
    from latent_mixup.labels import label_of, part_of

    def image_of(sample: Any) -> Any:
        return part_of(sample, image_key_of(sample, keys["image_key"]))

    seen = [image_of(dataset[index]) for index in order[:LOOKED_AT]]
    form, shape = detect_format(seen), pixel_values(seen[0]).shape[1:]
    wanted = (channels, *(sides(size) if size else shape))
    images, labels = [], []
    for index in order:
        sample = dataset[index]
        label = label_of(sample, index, keys["label_key"])
        if label.ndim or label < 0:
            raise ValueError(
                f"evaluate needs a class for each image: image {index} has {'none' if label.ndim == 0 else 'several'}"
            )
        try:
            images.append(form.convert(image_of(sample), wanted, resize=size is not None))
        except ValueError as cause:
            raise ValueError(f"image {index}: {cause}; or pass --size and --channels") from cause
        labels.append(label)
    return to_unit(torch.stack(images)).clamp(0, 1), torch.stack(labels)


def _numbers(name: str, text: str | None, usual: list[float]) -> list[float]:
    try:
        return usual if text is None else [float(part) for part in text.split(",")]
    except ValueError as cause:
        raise ValueError(
            f"--{name} needs numbers with commas between them, such as 0.5,0.5,0.5: got {text!r}"
        ) from cause
