"""Lightning: a callback mixes training batches on the device, and logs a sheet of mixes each epoch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from latent_mixup.augment import LatentMixupCollate
from latent_mixup.augment.base import MixKeywords, MixSettings, with_shared_keywords
from latent_mixup.augment.sources import Named, check_dataset, data_of, pair_of
from latent_mixup.bank import LatentBank
from latent_mixup.generators.base import Generator
from latent_mixup.integrations.sheets import log_sheet, sheet_of, takes_sheets

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as cause:
    raise ImportError(f'{__name__} needs lightning: pip install "latent-mixup[integrations]"') from cause

if TYPE_CHECKING:
    from typing_extensions import Unpack


@with_shared_keywords
class LatentMixup(Callback):
    """Mixes each training batch after its transfer to the device, so with any strategy; the loss gets soft targets.

    Validation, test and prediction are left alone. Only images that the training loader can give are mixed. Ranks draw
    differently. With a ``seed`` a run that goes on from a checkpoint, also from one in the middle of an epoch, has the
    mixes that the whole run would have had, as far as its loader gives it the same batches. At the start of each epoch
    a sheet of mixes goes to the trainer's loggers for TensorBoard and Weights & Biases.

    Args:
        generator: Decodes the bank's codes, moved to the module's device; or the name of generator and bank, such as
            ``"fashion-mnist"``, a folder that ``fit`` made, or a Hub id.
        bank: Codes and labels, or their name.
        dataset: The data set that is trained on; None: that of the training loader.
        shared: See :class:`latent_mixup.augment.base.MixKeywords`.

    Attributes:
        mixup: The :class:`latent_mixup.LatentMixupCollate` at work, from the start of a training.

    Raises:
        TypeError: A keyword is unknown, or an argument is of another kind; or there are several training loaders.
        ValueError: A setting is out of range, or bank, generator and data set do not belong together; or a trainer has
            two of these callbacks.

    Example:
        >>> trainer = L.Trainer(callbacks=[LatentMixup("fashion-mnist", prob=0.5, seed=0)])  # doctest: +SKIP
    """

    def __init__(
        self,
        generator: Named[Generator],
        bank: Named[LatentBank] | None = None,
        *,
        dataset: Any = None,
        **shared: Unpack[MixKeywords],
    ) -> None:
        MixSettings(**shared)  # a wrong one is told now, not when training starts
        if dataset is not None:
            check_dataset(dataset)
        self.generator, self.bank = pair_of(generator, bank)
        self.dataset, self.shared = dataset, shared

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the rows of the training images, and step into the way of batches to the device."""
        if sum(isinstance(callback, LatentMixup) for callback in trainer.callbacks) > 1:
            raise ValueError("a trainer takes one LatentMixup: got several among its callbacks")
        loader = trainer.train_dataloader
        if isinstance(loader, list | tuple | dict):
            raise TypeError(
                f"LatentMixup mixes the batches of one training loader: got a {type(loader).__name__} of them"
            )
        data = data_of(loader) if self.dataset is None else self.dataset
        mixup = LatentMixupCollate(self.generator, self.bank, dataset=data, collate_fn=_as_it_is, **self.shared)
        self.mixup = mixup.to(pl_module.device)
        self.mixup.set_epoch(trainer.current_epoch)  # the epoch that a run goes on within has no start
        trainer.strategy.batch_to_device = partial(self._on_device, trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the epoch, and log a sheet of mixes."""
        self.mixup.set_epoch(trainer.current_epoch)
        loggers = [logger for logger in trainer.loggers if takes_sheets(logger)] if trainer.is_global_zero else []
        if loggers:
            sheet = sheet_of(self.mixup, seed=trainer.current_epoch)
            for logger in loggers:
                log_sheet(logger, sheet, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Step out of the way again."""
        del trainer.strategy.batch_to_device

    def _on_device(self, trainer: Trainer, batch: Any, *args: Any, **kwargs: Any) -> Any:
        strategy = trainer.strategy
        batch = type(strategy).batch_to_device(strategy, batch, *args, **kwargs)
        return self.mixup(batch) if trainer.training else batch


def _as_it_is(batch: Any) -> Any:
    """The batch: the loader has collated it."""
    return batch
