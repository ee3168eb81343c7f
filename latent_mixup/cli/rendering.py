"""``render``: decoded mixes written once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from latent_mixup.cli import shared


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
    autocast: str | None,
    shard: str | None,
    device: str,
    **settings: Any,
) -> None:
    """Decode mixes of the codes in BANK with GENERATOR once, into the folder OUT.

    Both are folders, bundled names or Hub ids; GENERATOR may be module:function of your own, as for invert.

    lm.RenderedMixupDataset(OUT) reads them as fast as stored images. A killed command resumes when it is run again.
    Several processes share the work by --shard, or when python -m torch.distributed.run --nproc_per_node=N -m
    latent_mixup starts them; the last one puts the pool together.
    """
    import torch

    from latent_mixup import LatentBank
    from latent_mixup.pool.render import render

    part = shared.part_of(shard, device)
    complete = render(
        shared.generator_named(generator, part.device),
        LatentBank.from_pretrained(bank),
        out,
        n=n,
        policy=None if policy is None else _policy(policy),
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
