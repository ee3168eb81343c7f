"""Model and data-set cards: facts => Markdown with the Hub's header, without knowing generators or banks.

``save_pretrained`` writes a card as ``README.md``. A file that a user wrote or edited is never replaced, and no card is
ever read back.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from latent_mixup.hub.terms import DATA_SETS, is_test_part, known_data_set
from latent_mixup.hub.upload import HERE, sealed, unsealed

CARD_FILE = "README.md"
TAGS = ("latent-mixup", "mixup", "gan-inversion", "image-classification")
CITATION = """@misc{girard-latent-mixup,
  title = {{LATENT-MIXUP}: mixing latent variables to train robust classifiers},
  author = {Girard, Tristan and Gundersen, Benjamin and Laborie, Timoth\\'e}
}"""
_LINE_WIDTH = 96  # of a command


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Content of a card, as ``describe()`` of a network or bank gives it.

    Attributes:
        kind: Kind of Hub repository.
        title: Heading, plain text.
        summary: What it is, in a sentence or two of Markdown.
        usage: Python code that loads it by ``{here}``, and its generator by ``{generator}``.
        facts: Label => Markdown, for the table.
        metadata: Metadata of the network or bank; not trusted.
        header: Fields of the Hub's header, beside those that follow from ``metadata``.
        generator: Name of the generator that it belongs to.
        generator_digest: Digest of that generator.
        num_rows: Number of rows of a bank.
        quality: Markdown of the section "Quality".
    """

    kind: Literal["model", "dataset"]
    title: str
    summary: str
    usage: str
    facts: Mapping[str, str]
    metadata: Mapping[str, Any]
    header: Mapping[str, Any]
    generator: str | None = None
    generator_digest: str | None = None
    num_rows: int | None = None
    quality: str = ""


@dataclass(frozen=True)
class Extras:
    """Additions to a card by whoever publishes it.

    Attributes:
        name: Name that the card's example loads: a Hub id, or the folder itself.
        generator: Name of the generator in the example of an encoder or bank; None: from the metadata.
        commands: Commands that made it, beside the one in the metadata.
        measured: Label => measured value, as text.
        pictures: File name beside the card => caption.
    """

    name: str = HERE
    generator: str | None = None
    commands: Sequence[str] = ()
    measured: Mapping[str, str] = field(default_factory=dict)
    pictures: Mapping[str, str] = field(default_factory=dict)


PLAIN = Extras()


def card_file(folder: str | Path, describe: Callable[[], Facts], extras: Extras = PLAIN) -> dict[str, bytes]:
    """The card of a folder as file name => content; empty if the folder has one that a user wrote or edited."""
    path = Path(folder) / CARD_FILE
    if (path.exists() or path.is_symlink()) and unsealed(path) is None:
        return {}
    return {CARD_FILE: sealed(card(describe(), extras))}


def card(about: Facts, extras: Extras = PLAIN) -> str:
    """The card: a header in YAML, and Markdown."""
    generator = extras.generator or about.generator
    usage = about.usage.replace("{here}", json.dumps(extras.name)).replace("{generator}", json.dumps(generator))
    rows = dict(about.facts)
    if generator is not None:
        rows["generator"] = f"{code(generator)}, digest `{text(about.generator_digest or 'not stated')}`"
    pictures = [f"![{text(shown)}]({file})\n\n*{text(shown)}*" for file, shown in extras.pictures.items()]
    measured = [table(extras.measured)] if extras.measured else []
    licence, terms = _terms(about.metadata)
    sections = {
        "": about.summary,
        "Use": f"`pip install latent-mixup`, then\n\n{_fenced('python', usage)}",
        "What it is": table(rows),
        "Data": " ".join(filter(None, [_data(about.metadata.get("dataset"), about.num_rows), _seen(about.metadata)])),
        "Quality": "\n\n".join([*([about.quality] if about.quality else []), *measured, *pictures]),
        "How it was made": _making(about.metadata, extras.commands),
        "Licence": "\n\n".join(terms),
        "Citation": _fenced("bibtex", CITATION),
    }
    body = "\n\n".join(f"## {name}\n\n{content}" if name else content for name, content in sections.items() if content)
    return f"---\n{_header(about, licence)}\n---\n# {text(about.title)}\n\n{body}\n"


def generator_name(metadata: Mapping[str, Any], origin: Mapping[str, Any] | None) -> str:
    """Name that loads the generator which metadata describe; off the Hub its own name, or a placeholder.

    A name with a colon is Python code that somebody typed, ``module:function``, and loads nothing.
    """
    if origin and origin.get("repo") and origin.get("commit"):
        return f"{origin['repo']}@{origin['commit']}"
    name = metadata.get("name")
    is_name = isinstance(name, str) and name.isprintable() and ":" not in name
    return str(name) if is_name else "path/to/the/generator"


# --------------------------------------------------------------------------------------------------
# Sections
# --------------------------------------------------------------------------------------------------


def _header(about: Facts, licence: Mapping[str, str]) -> str:
    from huggingface_hub import DatasetCardData, ModelCardData

    known = known_data_set(about.metadata.get("dataset"))
    data_sets = "datasets" if about.kind == "model" else "source_datasets"
    fields: dict[str, Any] = {
        "library_name": "latent-mixup",
        **licence,
        "tags": list(TAGS),
        **({data_sets: [DATA_SETS[known].hub_id]} if known else {}),
        **about.header,
    }
    return (ModelCardData if about.kind == "model" else DatasetCardData)(**fields).to_yaml()


def _terms(metadata: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    """The licence as the header has it, and the paragraphs on it."""
    known = known_data_set(metadata.get("dataset"))
    stated = [metadata.get("licence"), _inner(metadata, "inversion", "licence")]
    terms = [text(said) for said in dict.fromkeys(said for said in stated if isinstance(said, str))]
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
    by = f"whose labels have SHA-256 {code(labels)}" if isinstance(labels, str) else "without labels"
    return f"{verb} {count} images of a data set {by}."


def _seen(metadata: Mapping[str, Any]) -> str:
    """A warning where labels were used: whoever holds some of these images out to choose by has to know it."""
    steps = _inner(metadata, "recipe", "feature_steps")
    if not (metadata.get("labels_seen") is True or (isinstance(steps, int) and steps > 0)):
        return ""
    return (
        "The feature network of the generator's loss was trained on the labels of all its training images. If you hold "
        "some of these out for validation, the generator has seen them, labels included: scores on them are too good."
    )


def _making(metadata: Mapping[str, Any], commands: Sequence[str]) -> str:
    stages = [(key.title(), stage) for key in ("refined", "filtered") for stage in _dicts(metadata.get(key))]
    typed = "\n".join(filter(None, (_command(made.get("command")) for made in (metadata, *(s for _, s in stages)))))
    shown = [*commands, *([typed] if typed else [])]
    parts = [_fenced("bash", "\n# or\n".join(shown))] if shown else []
    parts += [_lead("Source", metadata.get("source")), _lead("Source", _inner(metadata, "inversion", "source"))]
    recipe = metadata.get("recipe")
    parts.append(_lead("Settings", recipe if isinstance(recipe, dict) else metadata.get("inversion")))
    parts += [_lead(*stage) for stage in stages]
    parts.append(_lead("Versions", metadata.get("versions")))
    return "\n\n".join(part for part in parts if part)


def _command(words: object) -> str:
    """A command as metadata keep it, ``["latent-mixup", "invert", ...]``, in lines that fit; else empty."""
    if not (isinstance(words, list) and words and all(isinstance(word, str) and word.isprintable() for word in words)):
        return ""
    lines = [shlex.quote(words[0])]
    for word in map(shlex.quote, words[1:]):
        if word.startswith("--") and len(lines[-1]) + len(word) > _LINE_WIDTH:
            lines.append(f"    {word}")
        else:
            lines[-1] += f" {word}"
    return " \\\n".join(lines)


def _lead(title: str, facts: object) -> str:
    """A table under a title; without what has another place in the card."""
    if not isinstance(facts, dict):
        return ""
    shown = {str(name): code(value) for name, value in facts.items() if not isinstance(value, dict) and value != ""}
    shown = {name: value for name, value in shown.items() if name not in ("command", "source", "licence")}
    return f"{title}:\n\n{table(shown)}" if shown else ""


def _inner(metadata: Mapping[str, Any], outer: str, inner: str) -> object:
    value = metadata.get(outer)
    return value.get(inner) if isinstance(value, dict) else None


def _dicts(value: object) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


# --------------------------------------------------------------------------------------------------
# Text; what metadata say may come from anybody
# --------------------------------------------------------------------------------------------------


def table(facts: Mapping[str, str]) -> str:
    """A table of what => the fact, as Markdown."""
    return "\n".join(["| | |", "|---|---|", *(f"| {text(name)} | {fact} |" for name, fact in facts.items())])


def text(value: Any) -> str:
    """Plain text on one line, whatever Markdown or HTML is in it."""
    line = "".join(char if char.isprintable() else " " for char in str(value)[:2000])
    escaped = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", escaped)


def code(value: Any) -> str:
    """Text as Markdown code: no line break, table bar or backtick gets out of it."""
    return "`" + "".join(char if char.isprintable() and char not in "`|" else "?" for char in str(value)[:500]) + "`"


def _fenced(language: str, content: str) -> str:
    longest = max((len(run) for run in re.findall("`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{content}\n{fence}"
