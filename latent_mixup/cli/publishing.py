"""``push``: a folder into a repository of the Hugging Face Hub."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from latent_mixup.cli import shared

if TYPE_CHECKING:
    from latent_mixup.hub import Kind


@click.command("push")
@click.argument("folder", type=shared.FOLDER)
@click.argument("repo")
@click.option(
    "--generator",
    help="Generator that an encoder or bank is checked with: folder, bundled name, Hub id or module:function.",
)
@click.option("--private/--public", default=None, help="Visibility of a new repository; default: the organisation's.")
@click.option("--branch", help="Branch to push to, created if missing; default: the repository's default branch.")
@click.option("--message", help="Commit message.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--tag", help="Name for the commit, such as v1, by which it can be loaded: org/name@v1.")
@click.option("--dry-run", is_flag=True, help="Check and list the files without sending them.")
@shared.one_sentence
def push_command(
    folder: Path,
    repo: str,
    generator: str | None,
    private: bool | None,
    branch: str | None,
    message: str | None,
    create_pr: bool,
    tag: str | None,
    dry_run: bool,
) -> None:
    """Push FOLDER (generator, encoder, features or bank) to the Hub repository REPO (org/name), as one commit.

    Everything is loaded and checked before anything is sent. Only the model's or bank's own files, its card, licence
    and pictures are sent. The token comes from `hf auth login` or HF_TOKEN.
    """
    from latent_mixup import files, hub

    kind = kind_of(folder)
    what = check(folder, kind, generator)
    found = hub.files_to_push(folder, repo, kind)
    about = {"kind": kind, "repo": repo, "repo_type": hub.REPO_TYPE[kind], "checked": what}
    if not dry_run:
        pushed = hub.push_folder(
            folder, repo, kind, private=private, branch=branch, commit_message=message, create_pr=create_pr, tag=tag
        )
        shared.answer(
            f"{what} pushed: {pushed.pr_url or pushed}\ncommit {pushed.oid}",
            {**about, "url": str(pushed.pr_url or pushed), "commit": pushed.oid, "sent": True},
        )
        return
    lines = [f"{what}; would go to the Hub {hub.REPO_TYPE[kind]} repository {repo}:"]
    width, entries = max(map(len, found)), list[dict[str, Any]]()
    for name, content in found.items():
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        digest = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else files.sha256(content)
        lines.append(f"  {name:<{width}}  {size:>13,} bytes  {digest}")
        entries.append({"name": name, "bytes": size, "sha256": digest})
    total = sum(entry["bytes"] for entry in entries)
    lines.append(f"{len(found)} files, {total:,} bytes; nothing was sent")
    shared.answer("\n".join(lines), {**about, "files": entries, "bytes": total, "sent": False})


def kind_of(folder: Path) -> Kind:
    """Whether a folder holds a bank, an encoder, features or a generator, by its main file.

    Raises:
        FileNotFoundError: It has no main file.
    """
    from latent_mixup import files, hub
    from latent_mixup.classifiers import FEATURES

    if (folder / hub.MAIN_FILE["bank"]).is_file():
        return "bank"
    main = folder / hub.MAIN_FILE["generator"]
    if not main.is_file():
        raise FileNotFoundError(
            f"{folder} has no {main.name} and no {hub.MAIN_FILE['bank']}: expected a folder that save_pretrained wrote"
        )
    config = files.read_json(main)
    if "generator" in config:
        return "encoder"
    return "features" if str(config.get("architecture")) in FEATURES else "generator"


def check(folder: Path, kind: Kind, generator: str | None) -> str:
    """Load a folder as a user would, and describe it in half a sentence.

    Raises:
        FormatError: A file is damaged or has another format.
        ValueError: An encoder needs ``generator``, or does not belong to it.
    """
    from latent_mixup import LatentBank, files, hub, load_generator
    from latent_mixup.classifiers import FEATURES
    from latent_mixup.encoders import load_encoder

    decoder = shared.generator_named(generator) if generator else None
    if kind == "bank":
        bank = LatentBank.from_pretrained(folder, verify=True)
        if decoder:
            bank.check(decoder)
        return f"bank of {len(bank):,} codes of {bank.latent_shape}, digest {bank.digest()[:12]}"
    if kind == "encoder":
        if decoder is None:
            raise ValueError("an encoder is checked together with its generator: pass --generator")
        encoder = load_encoder(folder, decoder)
        return f"{type(encoder).__name__}, digest {encoder.digest()[:12]}"
    if generator:
        raise ValueError(f"--generator is for a bank or an encoder: {folder} holds a {kind}, leave it out")
    if kind == "features":
        config = files.read_json(folder / hub.MAIN_FILE[kind])
        features = FEATURES[config["architecture"]].from_pretrained(folder)
        return f"{type(features).__name__}, digest {features.digest()[:12]}"
    found = load_generator(folder)
    return f"generator {type(found).__name__}, digest {found.digest()[:12]}"
