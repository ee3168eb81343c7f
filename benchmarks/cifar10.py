r"""CIFAR-10: table 1 of the paper, and the rows that it lacks.

``reduced``, the default, is what a CPU can do in an afternoon: a ResNet-18 of a quarter of the width, 10,000 training
images, 12 epochs at batch 64, and a compact generator that is trained here on 12,500 training images: the classifiers'
10,000, and 2,500 of the 10,000 that are held out for validation. It shows how the methods compare at that budget;
its numbers do not belong beside the paper's. ``quick`` is done in minutes, to see that it runs. With --augment it is
the lower half of the table: flips, AutoAugment and crops.

    python benchmarks/cifar10.py --data-root data --preset quick
    python benchmarks/cifar10.py --data-root data

``full`` (40,000 training images, ResNet-18, 270 epochs of batch 32) is for GPUs, and for NVIDIA's StyleGAN2, converted,
with its banks. Under torchrun each process takes the next trial that nobody has, on a GPU of its own:

    torchrun --nproc_per_node 4 benchmarks/cifar10.py --data-root data --preset full --device cuda \
        --codes gan=GENERATOR:BANK --codes gan_0.025=GENERATOR:BANK --codes gan_0.020=GENERATOR:BANK

--data-root holds torchvision's ``cifar-10-batches-py/`` or, where that is missing, ``cifar10-jpeg/`` with
``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg``; results name the form.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import click
from paper.codes import Effort, Workshop, given_codes
from paper.methods import methods as fixed_methods
from paper.resnet import JPEGs, Plan, cifar10, resnet18, train_resnet, whole
from paper.running import Order, command, folder_of
from paper.settings import searched
from paper.trials import Benchmark, Classifier, Preset, split, stored_codes
from record import RESULTS, SEARCHED

from latent_mixup.demo.comparison import Budget

COMPACT = {"z_dim": 256, "network": {"decoder_widths": (1024, 1024), "encoder_widths": (1024, 1024)}}
METHODS = {  # without the paper's GAN for the MNIST family
    name: (how, codes)
    for name, (how, codes) in fixed_methods(1.0, searched(RESULTS / SEARCHED)).items()
    if codes != "dcgan"
}
CODES = list(dict.fromkeys(codes for _, codes in METHODS.values() if codes))
REDUCED = Effort(compact_steps=7500, vae_steps=3000, steps=60, refine_steps=400, images=12_500)
QUICK = Effort(compact_steps=200, feature_steps=50, vae_steps=100, steps=5, refine_steps=5, images=1250)
FEW: dict[str, Any] = {"deepfool_images": 100, "pgd_images": 100, "corruption_images": 100, "severities": (3,)}
PRESETS: dict[str, tuple[Budget, Plan, Effort, dict[str, Any]]] = {
    "reduced": (Budget(epochs=12, lr=0.1), Plan(width=16, plateau=False), REDUCED, {"deepfool_images": 1000}),
    "full": (Budget(epochs=270, batch_size=32, lr=0.1), Plan(), Effort(), {}),
    "quick": (Budget(epochs=2, lr=0.1), Plan(width=8, plateau=False), QUICK, FEW),
}


@click.option("--augment", is_flag=True, help="Flips, AutoAugment and crops: the lower half of table 1.")
@click.option("--codes", multiple=True, metavar="NAME=GENERATOR:BANK", help="Take these codes; may be repeated.")
def benchmark(order: Order, augment: bool = False, codes: tuple[str, ...] = ()) -> Benchmark:
    """The benchmark of a command line; ``codes``: ``NAME=GENERATOR:BANK`` each."""
    own, plan, effort, scores = PRESETS[order.preset]
    plan = replace(plan, augment=augment)
    name = f"{order.preset}_augmented" if augment else order.preset
    budget, folder = folder_of(name, own, order.changes)
    train, test = (cifar10(order.data_root, train=part) for part in (True, False))
    images = split("cifar10", train, test, effort.images)
    named = given_codes(codes, CODES)
    shop = Workshop("cifar10", train, order.work, effort, COMPACT, order.device, named)
    preset = Preset(
        budget,
        {method: (how, needed) for method, (how, needed) in METHODS.items() if not named or needed in (None, *named)},
        Classifier(partial(resnet18, plan=plan), partial(train_resnet, plan=plan, validation=images.validation), whole),
        facts={
            "images": "JPEG" if isinstance(train, JPEGs) else "original",
            "classifier": f"ResNet-18, width {plan.width}",
            "augment": augment,
        },
        scores=scores,
        folder=folder,
        given=named,
    )
    return Benchmark(
        images,
        name,
        preset,
        # made again, they differ by rounding: trials name the digest of those they decoded
        stored_codes(shop.codes, images, order.out / ("codes_augmented" if augment else "codes")),
        order.work,
        order.out,
        order.device,
    )


main = command(
    "cifar10",
    list(PRESETS),
    default="reduced",
    methods=", ".join(METHODS),
    seeds="42,4711,314159",
    help="Train and score each method with each seed; several processes share the work.",
)(benchmark)

if __name__ == "__main__":
    main()
