"""Model and data-set cards: what is known of a network or a bank => Markdown with the Hub's header.

``save_pretrained`` writes a card as ``README.md``. It ends in a line with a hash of what is above it, which tells it
from one that somebody wrote or edited: such a file is never replaced. Nothing reads a card back.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from latent_mixup.hub.cache import stated_origin
from latent_mixup.hub.commands import bank_command, encoder_command, generator_command, settings_of
from latent_mixup.hub.terms import DATA_SETS, is_test_part, known_data_set

if TYPE_CHECKING:
    from latent_mixup.bank import LatentBank
    from latent_mixup.classifiers import FeatureCNN, PaperFeatures
    from latent_mixup.encoders import Encoder
    from latent_mixup.generators import Generator

CARD_FILE = "README.md"
HERE = "."  # how a card loads what lies beside it, until it has a name on the Hub
TAGS = ("latent-mixup", "mixup", "gan-inversion", "image-classification")
CITATION = """@misc{girard-latent-mixup,
  title = {{LATENT-MIXUP}: mixing latent variables to train robust classifiers},
  author = {Girard, Tristan and Gundersen, Benjamin and Laborie, Timoth\\'e}
}"""
_SEAL = re.compile(rb"\n<!-- latent-mixup wrote this card; one that was edited is kept: ([0-9a-f]{64}) -->\n\Z")
_MAX_BYTES = 1024**2
_QUANTILES = {"median": 0.5, "95 %": 0.95}
_NAMED = 20  # classes that a card names
_THRESHOLDS = (0.02, 0.025)  # the paper refines codes above them
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


@dataclass(frozen=True)
class Extras:
    """What a card says beside what the thing itself knows.

    Attributes:
        name: How the card's example loads it: a name on the Hub, or the folder itself.
        generator: How the example of an encoder or a bank loads its generator; None: as the metadata have it.
        commands: That made it, beside the one that the metadata tell.
        measured: What => how much, as text.
        pictures: File beside the card => what it shows.
    """

    name: str = HERE
    generator: str | None = None
    commands: Sequence[str] = ()
    measured: Mapping[str, str] = field(default_factory=dict)
    pictures: Mapping[str, str] = field(default_factory=dict)


PLAIN = Extras()


# --------------------------------------------------------------------------------------------------
# The four cards
# --------------------------------------------------------------------------------------------------


def generator_card(generator: Generator, extras: Extras = PLAIN, *, digest: str | None = None) -> str:
    """The card of a generator.

    Args:
        generator: Its metadata and its sizes are what the card says.
        extras: See :class:`Extras`.
        digest: Of the weights as they are stored; None: ``generator.digest()``.
    """
    metadata, shape = generator.metadata, _list(generator.latent_shape)
    size = [generator.img_channels, generator.img_resolution, generator.img_resolution]
    title = _text(metadata.get("name") or type(generator).__name__)
    usage = f"""import latent_mixup as lm

generator = lm.load_generator({_name(extras.name)})
latents = generator.sample_latents(16)  # {_list([16, *generator.latent_shape])}
images = generator.decode(latents)  # {_list([16, *size])}, float32 in [-1, 1]"""
    facts = {
        "architecture": _code(type(generator).__name__),
        "images": f"{size[1]} x {size[2]}, {_channels(size[0])}",
        "latent codes": f"{shape} in {generator.latent_space}, mixed by {generator.preferred_path}",
        "classes": f"{generator.c_dim:,}" if getattr(generator, "c_dim", 0) else "none: it makes images of all kinds",
        "encoder": "comes with it" if generator.has_encoder else "none",
        "features": "come with it, for the loss of an inversion" if generator.features is not None else "none",
        **_network_facts(generator, digest),
    }
    return _card(
        {"pipeline_tag": "unconditional-image-generation"},
        f"{title}: a generator for latent-mixup",
        f"It decodes latent codes of shape {shape} into images, and mixes of codes into mixed images, which "
        "latent-mixup trains classifiers on.",
        usage,
        facts,
        metadata,
        extras,
        command=generator_command(generator),
    )


def encoder_card(encoder: Encoder, extras: Extras = PLAIN, *, digest: str | None = None) -> str:
    """The card of an encoder: see :func:`generator_card`."""
    generator, metadata = encoder.generator, encoder.metadata
    where = extras.generator or _generator_name(generator.metadata, stated_origin(generator.metadata))
    usage = f"""from latent_mixup import load_generator
from latent_mixup.encoders import load_encoder

generator = load_generator({_name(where)})
encoder = load_encoder({_name(extras.name)}, generator)
latents = encoder(generator.decode(generator.sample_latents(4)))  # {_list([4, *encoder.latent_shape])}"""
    facts = {
        "architecture": _code(type(encoder).__name__),
        "images": f"{encoder.image_shape[1]} x {encoder.image_shape[2]}, {_channels(encoder.image_shape[0])}",
        "latent codes": f"{_list(encoder.latent_shape)} in {generator.latent_space}",
        "generator": f"{_code(where)}, digest `{generator.digest()}`",
        **_network_facts(encoder, digest),
    }
    return _card(
        {"pipeline_tag": "image-feature-extraction"},
        f"{_text(metadata.get('name') or type(encoder).__name__)}: an encoder for latent-mixup",
        "It finds latent codes of images: the learned inverse of one generator, and where an inversion of that "
        "generator starts (`latent_mixup.invert(..., encoder=encoder)`).",
        usage,
        facts,
        metadata,
        extras,
        command=encoder_command(encoder, where),
    )


def features_card(features: PaperFeatures | FeatureCNN, extras: Extras = PLAIN, *, digest: str | None = None) -> str:
    """The card of a feature extractor: see :func:`generator_card`."""
    cls = type(features).__name__
    usage = f"""from latent_mixup.classifiers import {cls}
from latent_mixup.inversion import FeatureLoss

loss = FeatureLoss({cls}.from_pretrained({_name(extras.name)}))
# latent_mixup.invert(dataset, generator, loss=loss)"""
    return _card(
        {"pipeline_tag": "image-feature-extraction"},
        f"{_text(features.metadata.get('name') or cls)}: a feature extractor for latent-mixup",
        "Images that look alike have features that are close: an inversion minimises their distance.",
        usage,
        {"architecture": _code(cls), **_network_facts(features, digest)},
        features.metadata,
        extras,
        command=None,
    )


def bank_card(bank: LatentBank, extras: Extras = PLAIN, *, dtype: torch.dtype | None = None) -> str:
    """The data-set card of a bank.

    Args:
        bank: Its columns and its metadata are what the card says.
        extras: See :class:`Extras`.
        dtype: Of the codes as they are stored; None: as the bank has them.
    """
    metadata, kept = bank.metadata, dtype or bank.dtype
    stated = metadata.get("generator") or {}
    where = extras.generator or _generator_name(stated, stated)
    usage = f"""import latent_mixup as lm

bank = lm.LatentBank.from_pretrained({_name(extras.name)})
dataset = lm.LatentMixupDataset(None, lm.load_generator({_name(where)}), bank)
image, soft_target = dataset[0]  # a mix that starts at row 0; or wrap your loader with lm.LatentMixupLoader"""
    size = len(bank) * prod(bank.latent_shape) * kept.itemsize
    rows = {
        "rows": f"{len(bank):,}, one an image",
        "classes": _classes(bank),
        "latent codes": f"{_list(bank.latent_shape)} in {_text(bank.latent_space or 'an unnamed space')}, "
        f"{str(kept).removeprefix('torch.')}, {size / 1e6:,.1f} MB",
        "generator": f"{_code(where)}, digest `{_text(bank.generator_digest or 'not stated')}`",
        "labels": f"soft, {bank.num_classes} numbers" if bank.labels.ndim == 2 else _hard_labels(bank),
        "errors": _failures(bank),
    }
    title = known_data_set(metadata.get("dataset"))
    return _card(
        {
            "pretty_name": f"Latent bank of {DATA_SETS[title].title if title else 'images'}",
            "task_categories": ["image-classification"],
            "size_categories": [next((text for limit, text in _SIZES if len(bank) < limit), "n>1T")],
            "viewer": False,
        },
        f"Latent bank of {DATA_SETS[title].title if title else 'images'}, for latent-mixup",
        "For each image of a data set the latent code from which a generator decodes it: latent-mixup mixes codes, "
        "decodes the mixes, and trains classifiers on them. Row shards of safetensors, read by mmap.",
        usage,
        {name: fact for name, fact in rows.items() if fact},
        metadata,
        extras,
        rows=len(bank),
        command=bank_command(bank, where),
        errors=_error_table(bank),
    )


def card_of(thing: Any, extras: Extras = PLAIN, **stored: Any) -> str:
    """The card of anything that has one; ``stored`` is what its files will hold: ``digest`` or ``dtype``."""
    cards: dict[str, Callable[..., str]] = {
        "generator": generator_card,
        "encoder": encoder_card,
        "features": features_card,
        "bank": bank_card,
    }
    return cards[thing.hub_kind](thing, extras, **stored)


# --------------------------------------------------------------------------------------------------
# The file
# --------------------------------------------------------------------------------------------------


def sealed(card: str) -> bytes:
    """A card as it is written: with a last line by which a later write knows that nobody has changed it."""
    content = card.encode("utf-8", "replace")
    seal = hashlib.sha256(content).hexdigest()
    return content + f"\n<!-- latent-mixup wrote this card; one that was edited is kept: {seal} -->\n".encode()


def is_ours(path: Path) -> bool:
    """Whether a file is a card that :func:`sealed` made and nobody has edited."""
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            return False
        return _unsealed(path.read_bytes()) is not None
    except OSError:
        return False


def card_file(folder: str | Path, card: Callable[[], str]) -> dict[str, bytes]:
    """What to write as the card of a folder: name => content; nothing where somebody has written or edited one."""
    path = Path(folder) / CARD_FILE
    if (path.exists() or path.is_symlink()) and not is_ours(path):
        return {}
    return {CARD_FILE: sealed(card())}


def placed(content: bytes, repo_id: str) -> bytes:
    """A card whose example loads ``repo_id`` instead of the folder itself; one that was edited stays as it is."""
    card = _unsealed(content)
    if card is None:
        return content
    here = f"({_name(HERE)}"
    return sealed(card.decode().replace(f"{here})", f"({_name(repo_id)})").replace(f"{here}, ", f"({_name(repo_id)}, "))


def _unsealed(content: bytes) -> bytes | None:
    match = _SEAL.search(content)
    if match is None or hashlib.sha256(content[: match.start()]).hexdigest().encode() != match[1]:
        return None
    return content[: match.start()]


# --------------------------------------------------------------------------------------------------
# Sections
# --------------------------------------------------------------------------------------------------


def _card(
    header: Mapping[str, Any],
    title: str,
    what: str,
    usage: str,
    facts: Mapping[str, str],
    metadata: Mapping[str, Any],
    extras: Extras,
    *,
    command: str | None,
    rows: int | None = None,
    errors: str = "",
) -> str:
    licence, terms = _terms(metadata)
    known = known_data_set(metadata.get("dataset"))
    top = {
        "library_name": "latent-mixup",
        **licence,
        "tags": list(TAGS),
        **({("datasets" if rows is None else "source_datasets"): [DATA_SETS[known].hub_id]} if known else {}),
        **header,
    }
    pictures = [f"![{_text(text)}]({file})\n\n*{_text(text)}*" for file, text in extras.pictures.items()]
    measured = [_table(extras.measured)] if extras.measured else []
    sections = {
        "": what,
        "Use": f"`pip install latent-mixup`, then\n\n{_fenced('python', usage)}",
        "What it is": _table(facts),
        "Data": _data(metadata.get("dataset"), rows),
        "Quality": "\n\n".join([*([errors] if errors else []), *measured, *pictures]),
        "How it was made": _making(metadata, [*extras.commands, *([command] if command else [])]),
        "Licence": "\n\n".join(terms),
        "Citation": _fenced("bibtex", CITATION),
    }
    body = "\n\n".join(f"## {name}\n\n{text}" if name else text for name, text in sections.items() if text)
    return f"{_front_matter(top)}# {title}\n\n{body}\n"


def _front_matter(fields: Mapping[str, Any]) -> str:
    """YAML, each value as JSON has it, which YAML takes."""
    return "".join(["---\n", *(f"{name}: {json.dumps(value)}\n" for name, value in fields.items()), "---\n"])


def _terms(metadata: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """The licence as the header has it, and the paragraphs on it."""
    known = known_data_set(metadata.get("dataset"))
    stated = [metadata.get("licence"), _inner(metadata, "inversion", "licence")]
    terms = [_text(text) for text in dict.fromkeys(text for text in stated if isinstance(text, str))]
    licence = {"license": DATA_SETS[known].licence if known else "unknown"}
    if terms:
        licence = {"license": "other", "license_name": "terms-of-the-source"}
    if known:
        terms.append(DATA_SETS[known].terms)
    return licence, terms or ["The terms of whoever made the images apply; the files do not say which."]


def _data(stated: object, rows: int | None) -> str:
    """What a network was trained on, or what a bank of so many rows has codes of."""
    said: dict[str, Any] = stated if isinstance(stated, dict) else {}
    known, length, labels = known_data_set(said), said.get("length"), said.get("labels")
    verb = "Trained on" if rows is None else "Codes of" if rows == length else f"Codes of {rows:,} of"
    count = f"the {length:,}" if isinstance(length, int) else "the"
    if known:
        part = "test" if is_test_part(said) else "training"
        return f"{verb} {count} {part} images of [{DATA_SETS[known].title}]({DATA_SETS[known].page})."
    if not isinstance(length, int):
        return ""
    by = f"whose labels have SHA-256 {_code(labels)}" if isinstance(labels, str) else "without labels"
    return f"{verb} {count} images of a data set {by}."


def _making(metadata: Mapping[str, Any], commands: Sequence[str]) -> str:
    parts = [_fenced("bash", "\n# or\n".join(commands))] if commands else []
    parts += [_lead("Source", metadata.get("source")), _lead("Source", _inner(metadata, "inversion", "source"))]
    parts += [_lead("Settings", settings_of(metadata))]
    parts += [_lead("Refined", stage) for stage in _dicts(metadata.get("refined"))]
    parts += [_lead("Filtered", stage) for stage in _dicts(metadata.get("filtered"))]
    parts += [_lead("Versions", metadata.get("versions"))]
    return "\n\n".join(part for part in parts if part)


def _lead(title: str, facts: object) -> str:
    if not isinstance(facts, dict) or not facts:
        return ""
    said = {str(name): _code(value) for name, value in facts.items() if not isinstance(value, dict) and value != ""}
    return f"{title}:\n\n{_table(said)}" if said else ""


def _inner(metadata: Mapping[str, Any], outer: str, inner: str) -> object:
    value = metadata.get(outer)
    return value.get(inner) if isinstance(value, dict) else None


def _dicts(value: object) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _network_facts(network: Any, digest: str | None) -> dict[str, str]:
    numbers = sum(parameter.numel() for parameter in network.parameters())
    return {"parameters": f"{numbers:,}", "digest": f"`{digest or network.digest()}`"}


def _classes(bank: LatentBank) -> str:
    names, labels = bank.metadata.get("classes") or [], bank.hard_labels
    found, counts = labels[labels >= 0].unique(return_counts=True)
    known = isinstance(names, list) and len(names) == bank.num_classes
    shown = [
        f"{_text(names[label]) if known else label} ({count:,})"
        for label, count in zip(found[:_NAMED].tolist(), counts[:_NAMED].tolist(), strict=True)
    ]
    return f"{bank.num_classes:,}: {', '.join(shown)}{' ...' if len(found) > _NAMED else ''}" if shown else "none"


def _hard_labels(bank: LatentBank) -> str:
    missing = int((bank.labels < 0).sum())
    return "a class index" + (f", missing in {missing:,} rows" if missing else "")


def _failures(bank: LatentBank) -> str:
    failed = 0 if bank.status is None else int((bank.status != 0).sum())
    aside = bank.metadata.get("set_aside")
    left_out = len(aside) if isinstance(aside, dict) else 0
    said = [f"{failed:,} rows without a good code (status)" if failed else "", f"{left_out:,} images left out"]
    return "; ".join(text for text in said[: 2 if left_out else 1] if text)


def _error_table(bank: LatentBank) -> str:
    """Mean and quantiles of the reconstruction errors, and how many are large."""
    mse = np.empty(0) if bank.mse is None else bank.mse[bank.mse.isfinite()].double().numpy()
    if not len(mse):
        return ""
    quantiles = {name: f"{np.quantile(mse, share):.4f}" for name, share in _QUANTILES.items()}
    facts = {"mean": f"{mse.mean():.4f}", **quantiles}
    facts |= {f"{limit:g} or above": f"{(mse >= limit).mean():.1%}" for limit in _THRESHOLDS}
    return f"MSE of the reconstructions, {len(mse):,} images, in units of [-1, 1] squared:\n\n{_table(facts)}"


def _generator_name(metadata: Mapping[str, Any], origin: Mapping[str, Any] | None) -> str:
    """How a generator that metadata name is loaded; a guess where it is not on the Hub."""
    if origin and origin.get("repo") and origin.get("commit"):
        return f"{origin['repo']}@{origin['commit']}"
    name = metadata.get("name")
    return name if isinstance(name, str) and name.isprintable() else "path/to/the/generator"


# --------------------------------------------------------------------------------------------------
# Text; what metadata say may come from anybody
# --------------------------------------------------------------------------------------------------


def _table(facts: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {_text(name)} | {fact} |" for name, fact in facts.items())])


def _text(value: Any) -> str:
    """Plain text on one line, whatever Markdown or HTML is in it."""
    line = "".join(char if char.isprintable() else " " for char in str(value)[:2000])
    escaped = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", escaped)


def _code(value: Any) -> str:
    """Text as Markdown code: no line break, table bar or backtick gets out of it."""
    return "`" + "".join(char if char.isprintable() and char not in "`|" else "?" for char in str(value)[:500]) + "`"


def _fenced(language: str, text: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _name(name: str) -> str:
    """A name as Python has it."""
    return json.dumps(name)


def _list(shape: Sequence[int]) -> str:
    return str(list(shape))


def _channels(count: int) -> str:
    return {1: "grey", 3: "RGB"}.get(count, f"{count} channels")
