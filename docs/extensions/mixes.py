"""``{mixes}``: a policy as code, and a picture of the mixes that this code makes of the digits that ship."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from torch import Tensor

import latent_mixup as lm
from latent_mixup import policies
from latent_mixup.bundled import BundledImages
from latent_mixup.classifiers import PaperCNN
from latent_mixup.functional import mix_targets, path_named
from latent_mixup.generators import Generator
from latent_mixup.images import from_uint8
from latent_mixup.pictures import png
from latent_mixup.policies import BankView, Draw, Policy
from latent_mixup.training import shuffled_batches, train_classifier

DATA, DIGITS = "mnist", (2, 3, 4, 6, 7, 9)  # the samples' own classes, one a column
SEED, ZOOM = 21, 3
LAYERS, LAYER_DIM, LAYER_ZOOM = 8, 16, 5  # codes that stand for those of W+: no generator that ships has them
FOLDER = "_mixes"


@cache
def shipped() -> tuple[Generator, lm.LatentBank, BankView, Tensor]:
    """Generator, bank, the bank as a policy sees it, and a row of each digit."""
    generator, bank = lm.load(DATA)
    rows = torch.stack([(bank.labels == digit).nonzero()[8, 0] for digit in DIGITS])
    return generator, bank, BankView(bank), rows


@cache
def trained() -> PaperCNN:
    """A classifier of the digits, for policies that ask one."""
    torch.manual_seed(SEED)
    model, data = PaperCNN(), BundledImages(DATA)
    train_classifier(model, shuffled_batches(from_uint8(data.data), data.targets, 64, 80, seed=SEED))
    return model


def policy_of(code: str) -> Policy:
    """The ``policy`` that a piece of code makes."""
    names: dict[str, Any] = {**vars(policies), "torch": torch}
    if "model" in code:
        names["model"] = trained()
    exec(compile(code, "a policy of the gallery", "exec"), names)
    policy: Policy = names["policy"]
    return policy


@torch.no_grad()
def mix_picture(policy: Policy, epochs: Sequence[int]) -> bytes:
    """Samples, their partners and the mixes with their labels, a column a sample; a row of mixes for each epoch."""
    generator, bank, view, rows = shipped()
    made = [trained_on(policy, policy.draw(len(rows), view, stream(), epoch=epoch, rows=rows)) for epoch in epochs]
    draw = made[-1][0]
    mixed = bool((draw.lam < 1).any())
    pictures: list[Tensor] = []
    notes: list[str] = []
    for place in range(policy.num_sources if mixed else 1):
        codes, labels = bank[draw.sources[:, place]]
        pictures.append(generator.decode(codes))
        notes += [f"{'partner' if place else 'own'}: {label}" for label in labels.tolist()]
    plain = replace(policy, noise=None, truncation=None, project=0.0, low_pass=None, choose=None)
    if mixed and replace(plain, choose=policy.choose) != policy:
        pictures.append(trained_on(plain, replace(draw, noise=None, times=None))[1])
        notes += ["the mix alone"] * len(rows)
    for epoch, (_, images, targets) in zip(epochs, made, strict=True):
        pictures.append(images)
        notes += [f"epoch {epoch}:\n{said(target)}" if len(epochs) > 1 else said(target) for target in targets]
    return png(pictures, notes=notes, zoom=ZOOM)


def trained_on(policy: Policy, draw: Draw) -> tuple[Draw, Tensor, Tensor]:
    """The mixes that are used, their images as a classifier gets them, and their soft labels, ``[k, num_classes]``."""
    generator, bank, view, rows = shipped()
    path = path_named(policy.path or generator.preferred_path)
    images, labels = policy.decoded(draw, view, path, generator, bank.num_classes, generator.decode)
    pair = policy.label(labels, draw, bank.num_classes, images)
    kept = policy.kept(images, pair, bank.num_classes)
    targets = mix_targets(*pair, bank.num_classes)
    if kept is None:
        return draw, images, targets
    assert len(kept) == len(rows), "a picture needs a mix of every sample"
    return replace(draw, sources=draw.sources[kept], weights=draw.weights[kept]), images[kept], targets[kept]


def said(target: Tensor) -> str:
    """The label of a mix in words: its two or three largest classes."""
    weights, classes = target.sort(descending=True, stable=True)
    pairs = [f"{c}: {w:.2f}" for w, c in zip(weights.tolist(), classes.tolist(), strict=True) if w >= 0.05]
    return "\n".join(pairs[:3])


def layer_picture(policy: Policy) -> bytes:
    """The weight of the sample's own code in each layer of W+, the first on top; white: 1; a column a mix."""
    codes = torch.randn(len(DIGITS), LAYERS, LAYER_DIM, generator=stream())
    draw = policy.draw(len(codes), BankView(lm.LatentBank(codes, torch.tensor(DIGITS))), stream())
    assert draw.shares is not None
    own = 2 * draw.shares[:, 0].expand(-1, LAYERS, LAYER_DIM) - 1
    notes = [f"label {share:.2f}" for share in draw.label_weights[:, 0].tolist()]
    return png([own[:, None]], notes=notes, zoom=LAYER_ZOOM)


def stream() -> torch.Generator:
    """The same draws for every picture."""
    return torch.Generator().manual_seed(SEED)


def numbers(text: str) -> list[int]:
    """An option with numbers, such as ``0 5 10``."""
    return [int(word) for word in text.split()]


class Mixes(SphinxDirective):
    """Code that makes a ``policy``, and the picture of what the policy does."""

    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {"epochs": numbers, "layers": directives.flag}

    def run(self) -> list[nodes.Node]:
        """The code as it stands, then the picture."""
        code = "\n".join(self.content)
        policy = policy_of(code)
        picture = (
            layer_picture(policy) if "layers" in self.options else mix_picture(policy, self.options.get("epochs", [0]))
        )
        name = hashlib.sha256(picture).hexdigest()[:16] + ".png"
        path = Path(self.env.srcdir, FOLDER, name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture)
        block = nodes.literal_block(code, code, language="python")
        image = nodes.image(uri=f"/{FOLDER}/{name}", alt=f"Mixes made by {' '.join(code.split())}", classes=["mixes"])
        self.set_source_info(block)
        self.set_source_info(image)
        return [block, image]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("mixes", Mixes)
    return {"version": "1", "parallel_read_safe": True}
