"""``render``: decoded mixes written once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from latent_mixup.cli import shared

if TYPE_CHECKING:
    from latent_mixup.generators import Generator
    from latent_mixup.policies import Policy, Teacher


@click.command("render")
@click.argument("generator")
@click.argument("bank")
@click.argument("out", type=shared.FOLDER)
@click.option("--n", type=click.IntRange(1), required=True, help="Number of mixes.")
@click.option("--alpha", type=float, default=1.0, help="lam is drawn from Beta(alpha, alpha).")
@click.option(
    "--path", type=click.Choice(["lerp", "slerp"]), help="Path between two codes. Default: the generator's own."
)
@click.option(
    "--policy", help="How a mix is made, in place of --alpha and --path: robust, paper, or a JSON file with a policy."
)
@click.option("--prior", is_flag=True, help="Fresh samples of the generator's prior in the place of mixes.")
@click.option(
    "--labels",
    metavar="MODEL",
    help="A classifier that labels the images: my_module:make, timm:NAME or torchvision:NAME, as for evaluate.",
)
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The classifier's state_dict as a .safetensors file.",
)
@click.option("--temperature", type=float, default=1.0, help="Divides the classifier's logits.")
@click.option("--seed", type=int, default=0, help="Seed of all draws.")
@click.option("--batch-size", type=click.IntRange(1), default=256, help="Mixes decoded in one call.")
@click.option("--autocast", type=click.Choice(["bfloat16", "float16"]), help="Decode in half precision.")
@click.option("--channels-last", is_flag=True, help="Decode in this memory format.")
@click.option("--compile", is_flag=True, help="Decode through torch.compile.")
@shared.part_options
@shared.one_sentence
def render_command(
    generator: str,
    bank: str,
    out: Path,
    n: int,
    policy: str | None,
    prior: bool,
    labels: str | None,
    weights: Path | None,
    temperature: float,
    autocast: str | None,
    shard: str | None,
    device: str,
    **settings: Any,
) -> None:
    """Decode mixes of the codes in BANK with GENERATOR once, into the folder OUT.

    Both are folders, bundled names or Hub ids; GENERATOR may be module:function of your own, as for invert.

    With --prior the images are fresh samples, which no row of the bank is in; --labels MODEL has a classifier say what
    they show.

    lm.RenderedMixupDataset(OUT) reads them as fast as stored images. A killed command resumes when it is run again.
    Several processes share the work by --shard, or when python -m torch.distributed.run --nproc_per_node=N -m
    latent_mixup starts them; the last one puts the pool together.
    """
    import torch

    from latent_mixup import LatentBank
    from latent_mixup.pool.render import render

    part = shared.part_of(shard, device)
    decoder, codes = shared.generator_named(generator, part.device), LatentBank.from_pretrained(bank)
    followed = None if policy is None else _policy(policy)
    if prior or labels is not None:
        teacher = None if labels is None else _teacher(labels, weights, temperature, decoder, codes.num_classes)
        followed = _with(followed, settings, prior, teacher)
    elif weights is not None or temperature != 1:
        raise ValueError("--weights and --temperature belong to a classifier: name it with --labels")
    complete = render(
        decoder,
        codes,
        out,
        n=n,
        policy=followed,
        autocast=None if autocast is None else getattr(torch, autocast),
        shard=part.shard,
        progress=part.shows,
        **settings,
    )
    if not complete:
        text = f"shard {part.shard[0]}/{part.shard[1]} is done; the last shard puts the pool together"
        shared.answer(text, {"out": str(out), "shard": part.shard, "finished": False})
        return
    size = sum(path.stat().st_size for path in out.glob("pool.*"))
    record = {"out": str(out), "shard": part.shard, "finished": True, "mixes": n, "bytes": size}
    shared.answer(f"{out}: {n:,} mixes, {size / 1e6:,.0f} MB", record)


def _with(policy: Any, settings: dict[str, Any], prior: bool, teacher: Teacher | None) -> Policy:
    """The policy that the options say, with fresh samples or a classifier's labels; takes its parts from ``settings``.

    Raises:
        ValueError: They do not go together.
    """
    from latent_mixup.policies import Beta, Policy, Prior, named

    plain = {"alpha": settings.pop("alpha"), "path": settings.pop("path")}
    if prior:
        if policy is not None or plain != {"alpha": 1.0, "path": None}:
            raise ValueError("--prior mixes nothing: leave out --policy, --alpha and --path")
        return Prior(labels=teacher)
    if policy is None:
        return Policy(Beta(plain["alpha"]), path=plain["path"], labels=teacher)
    return replace(named(policy).policy if isinstance(policy, str) else policy, labels=teacher)


def _teacher(text: str, weights: Path | None, temperature: float, generator: Generator, num_classes: int) -> Teacher:
    """The classifier that the user typed, for images in [-1, 1]."""
    from latent_mixup.cli.evaluation import classifier_named
    from latent_mixup.policies import Teacher
    from latent_mixup.robustness import Normalized

    model, usual, _ = classifier_named(text, weights, num_classes, generator.img_channels)
    mean, std = ([2 * value - 1 for value in usual["mean"]], [2 * value for value in usual["std"]])  # of [-1, 1]
    return Teacher(Normalized(model.to(generator.device), mean, std), temperature)


def _policy(name: str) -> Any:
    """A policy's name, or the policy in a JSON file; raises ``ValueError`` where it is neither."""
    from latent_mixup import files
    from latent_mixup.policies import NAMED, from_config

    if name in NAMED:
        return name
    if not Path(name).is_file():
        raise ValueError(f"--policy needs one of {', '.join(NAMED)}, or a JSON file: got {name!r}")
    config = files.read_json(Path(name))
    try:
        return from_config(config)
    except ValueError as cause:
        raise ValueError(f"{name}: {cause}") from cause
