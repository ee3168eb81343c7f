"""timm: one call in its train.py, before the loss is set up."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from latent_mixup.augment import LatentMixupCollate, LatentMixupLoader
from latent_mixup.augment.base import MixKeywords
from latent_mixup.augment.sources import Named, data_of
from latent_mixup.bank import LatentBank
from latent_mixup.generators.base import Generator

if TYPE_CHECKING:
    from typing_extensions import Unpack


def use_latent_mixup(
    loader_train: Any,
    args: Namespace,
    data_config: Mapping[str, Any],
    generator: Named[Generator],
    bank: Named[LatentBank] | None = None,
    **shared: Unpack[MixKeywords],
) -> tuple[Any, LatentMixupCollate | None, bool]:
    """Mix the training batches of timm's train.py, with its prefetcher or without.

    Args:
        loader_train: As train.py has it.
        args: Its arguments; ``prefetcher``, ``device``, ``smoothing``, ``task`` and those of timm's own mixing are
            read. Where ``mixup`` is 0 it becomes 1, by which train.py of timm 1.0.31 chooses its loss, after its own
            mixing was set up.
        data_config: Its own; ``mean`` and ``std`` of the images are read.
        generator: Decodes the bank's codes, moved to ``args.device``; or the name of generator and bank, such as
            ``"fashion-mnist"``, a folder that ``fit`` made, or a Hub id.
        bank: Codes and labels, or their name.
        shared: See :class:`latent_mixup.augment.base.MixKeywords`.

    Returns:
        ``loader_train``; ``mixup_fn``, None with the prefetcher; and True for ``mixup_active``, by which older
        train.py's choose their loss for soft targets. ``--mixup-off-epoch`` switches either off, and ``--task
        multilabel`` means ``multi_label=True``.

    Raises:
        TypeError: A keyword is unknown, or an argument is of another kind.
        ValueError: timm's own mixing is on without the prefetcher or with smoothing; a setting is out of range; or
            bank, generator and data set do not belong together.

    Example:
        >>> loader_train, mixup_fn, mixup_active = use_latent_mixup(  # doctest: +SKIP
        ...     loader_train, args, data_config, "fashion-mnist", prob=0.5
        ... )
    """
    mixes = args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None
    if mixes and (args.smoothing or not args.prefetcher):
        raise ValueError(
            "timm's own --mixup and --cutmix go with latent mixup if the prefetcher is on and nothing smooths their "
            f"targets twice: got --smoothing {args.smoothing:g}{'' if args.prefetcher else ' and --no-prefetcher'}; "
            "pass --smoothing 0 and keep the prefetcher, or leave them out"
        )
    args.mixup = args.mixup or 1.0
    settings: MixKeywords = {
        "label_smoothing": args.smoothing,
        "normalize": (data_config["mean"], data_config["std"]),
        "multi_label": getattr(args, "task", None) == "multilabel",
        **shared,
    }
    if args.prefetcher:
        return LatentMixupLoader(loader_train, generator, bank, device=args.device, **settings), None, True
    mixup_fn = LatentMixupCollate(generator, bank, dataset=data_of(loader_train), **settings)
    return loader_train, mixup_fn.to(args.device), True
