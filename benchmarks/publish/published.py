"""The list of what ``publish.py`` makes: names on the Hub, kinds, licences."""

from __future__ import annotations

from dataclasses import dataclass

from latent_mixup.hub import Kind
from latent_mixup.hub.terms import DATA_SETS

ORGANISATION = "latent-mixup"
GREY = ("mnist", "fashion-mnist")
TRAINED_ON = (*GREY, "cifar10")
CIFAR10 = "stylegan2-cifar10"


@dataclass(frozen=True)
class Artefact:
    """One repository.

    Attributes:
        name: Of the repository, and of its folder under ``hub/``.
        kind: What is in it.
        what: In half a sentence.
        licence: As its card has it.
        generator: The artefact it belongs to; None: it is one.
        data_set: What it is of.
        refined_above: In a bank of the authors, codes with this MSE or more had 4,000 more steps, stage by stage.
        licensed: Whether its authors gave a licence; what has none is made for own use and never pushed.
    """

    name: str
    kind: Kind
    what: str
    licence: str
    generator: str | None = None
    data_set: str = "cifar10"
    refined_above: tuple[float, ...] = ()
    licensed: bool = True

    @property
    def ours(self) -> bool:
        """Whether it is trained here, not converted from the files of others."""
        return not self.name.startswith(CIFAR10)


def _trained(data_set: str) -> list[Artefact]:
    title, licence = DATA_SETS[data_set].title, DATA_SETS[data_set].licence
    generator = f"{data_set}-generator"
    made = [
        Artefact(generator, "generator", f"generator of {title}, with a prior", licence, None, data_set),
        Artefact(f"{data_set}-bank", "bank", f"codes of training images of {title}", licence, generator, data_set),
    ]
    if data_set not in GREY:
        return made
    what = f"the paper's feature extractor, trained on {title}"
    return [*made, Artefact(f"{data_set}-features", "features", what, licence, None, data_set)]


def _authors(*refined_above: float) -> Artefact:
    """One of the authors' three banks: figures 1 to 3 of the paper."""
    name = "-".join([f"{CIFAR10}-bank", *(f"{limit:.3f}" for limit in refined_above[-1:])])
    stages = " and then ".join(f"from MSE {limit:g}" for limit in refined_above)
    more = f", with 4,000 more steps for codes {stages}" if stages else ""
    what = f"the authors' codes of the 50,000 training images of CIFAR-10{more}"
    return Artefact(name, "bank", what, "other", CIFAR10, refined_above=refined_above, licensed=False)


ARTEFACTS = [
    *(artefact for data_set in TRAINED_ON for artefact in _trained(data_set)),
    Artefact(CIFAR10, "generator", "NVIDIA's StyleGAN2 of CIFAR-10, converted: for non-commercial use only", "other"),
    _authors(),
    _authors(0.025),
    _authors(0.025, 0.020),
]
