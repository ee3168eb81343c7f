"""The data sets that the package knows: their names in several places, and their licences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DataSet:
    """A data set, recognised by its labels.

    Attributes:
        title: Name for readers.
        page: URL of its origin.
        hub_id: Name on the Hugging Face Hub.
        torchvision: Name of its torchvision class.
        licence: Licence identifier, as the Hub writes it.
        terms: A sentence on the licence, Markdown.
        train: SHA-256 of its training labels, as :func:`latent_mixup.bank.fingerprint` computes it; None: unknown.
        test: The same for its test labels.
    """

    title: str
    page: str
    hub_id: str
    torchvision: str
    licence: str
    terms: str
    train: str | None = None
    test: str | None = None


DATA_SETS = {
    "mnist": DataSet(
        title="MNIST",
        page="http://yann.lecun.com/exdb/mnist/",
        hub_id="ylecun/mnist",
        torchvision="MNIST",
        licence="cc-by-sa-3.0",
        terms="Yann LeCun and Corinna Cortes hold the copyright of MNIST, a derivative work from NIST data sets; it is "
        "made available under the terms of the "
        "[Creative Commons Attribution-Share Alike 3.0 licence](https://creativecommons.org/licenses/by-sa/3.0/). "
        "What was made from it is shared under the same licence.",
        train="e474323ac02fc156161b0bbb1f8c9cfeb327a74bcd9f9680a8385269a24f566c",
        test="2fd8de6bdb8d11780b4b96dc57847bcfe6953f7c32aa48bfcd8237c3b7847243",
    ),
    "fashion-mnist": DataSet(
        title="Fashion-MNIST",
        page="https://github.com/zalandoresearch/fashion-mnist",
        hub_id="zalando-datasets/fashion_mnist",
        torchvision="FashionMNIST",
        licence="mit",
        terms="Fashion-MNIST is copyright 2017 Zalando SE, under the "
        "[MIT licence](https://github.com/zalandoresearch/fashion-mnist/blob/master/LICENSE). What was made from it is "
        "shared under the same licence.",
        train="e3245b63f7c40d1c8b652835f19744d970c1613b40ddac6bcfc87b9c46e16a0b",
        test="d51d859896c55775b9e9e219b77ff03bcec1b6ac322f313544dc3f9e7bc94fae",
    ),
    "cifar10": DataSet(
        title="CIFAR-10",
        page="https://www.cs.toronto.edu/~kriz/cifar.html",
        hub_id="uoft-cs/cifar10",
        torchvision="CIFAR10",
        licence="unknown",
        terms="The page of CIFAR-10 states no licence. It says: \"If you're going to use this dataset, please cite the "
        'tech report at the bottom of this page", which is Alex Krizhevsky, "Learning Multiple Layers of Features from '
        'Tiny Images", 2009.',
    ),
}


def known_data_set(stated: object) -> str | None:
    """The key in :data:`DATA_SETS` for ``metadata["dataset"]``: by its labels, else by its name; None: unknown."""
    said: dict[str, Any] = stated if isinstance(stated, dict) else {}
    labels, name = said.get("labels"), said.get("name")
    for key, data_set in DATA_SETS.items():
        if isinstance(labels, str) and labels in (data_set.train, data_set.test):
            return key
    return name if isinstance(name, str) and name in DATA_SETS else None


def is_test_part(stated: object) -> bool:
    """Whether ``metadata["dataset"]`` states the test images of a known data set."""
    labels = stated.get("labels") if isinstance(stated, dict) else None
    return isinstance(labels, str) and labels in {data_set.test for data_set in DATA_SETS.values()}
