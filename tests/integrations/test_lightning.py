"""The Lightning callback: training alone, resuming, several processes, sheets, and what it refuses."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Subset, SubsetRandomSampler, WeightedRandomSampler

import latent_mixup as lm
from latent_mixup.augment.sources import data_of
from latent_mixup.policies import Policy

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    L = pytest.importorskip("lightning")
    from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
    from lightning.pytorch.loggers.logger import Logger

    from latent_mixup.integrations.lightning import LatentMixup

pytestmark = pytest.mark.filterwarnings("ignore")


class Watched(L.LightningModule):
    """Keeps the batches of each training step; evaluation has to get real labels."""

    def __init__(self):
        super().__init__()
        self.model, self.seen = nn.Linear(16, 3), []

    def training_step(self, batch, batch_idx):
        self.seen.append(tuple(batch))
        return F.cross_entropy(self.model(batch[0].flatten(1)), batch[1])

    def validation_step(self, batch, batch_idx):
        assert batch[1].dtype == torch.int64

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer_with(*callbacks, logger=False, max_epochs=2, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return L.Trainer(
        accelerator="cpu", callbacks=[*callbacks], logger=logger, max_epochs=max_epochs, **quiet, **options
    )


def same(found, expected):
    return all(torch.equal(a, b) for pair in zip(found, expected, strict=True) for a, b in zip(*pair, strict=True))


@pytest.fixture
def callback(linear_generator, toy_bank):
    def make(**settings):
        return LatentMixup(linear_generator, toy_bank, **settings)

    return make


@pytest.fixture
def loader(toy_dataset):
    """Four batches, the last one short."""

    def make(kind=DataLoader, data=toy_dataset, **options):
        return kind(data, 16, **options)

    return make


def test_training_is_mixed_and_evaluation_is_not(callback, loader):
    module, trainer = Watched(), trainer_with(callback(seed=0))
    trainer.fit(module, loader(), loader())
    assert [tuple(targets.shape) for _, targets in module.seen] == 2 * ([(16, 3)] * 3 + [(2, 3)])
    assert not any(torch.equal(a[1], b[1]) for a, b in zip(module.seen[:4], module.seen[4:], strict=True))
    trainer.validate(module, loader())
    assert "batch_to_device" not in vars(trainer.strategy)


def test_without_mixes_batches_are_the_loaders_own(callback, loader, toy_dataset):
    module, plain = Watched(), Watched()
    trainer_with(callback(prob=0.0)).fit(module, loader())
    trainer_with().fit(plain, loader())
    expected = [(images, F.one_hot(labels, 3).float()) for images, labels in plain.seen]
    assert same(module.seen, expected)


def test_it_is_the_collate_function_after_the_loader(callback, loader, linear_generator, toy_bank, toy_dataset):
    module = Watched()
    trainer_with(callback(prob=0.5, seed=3), max_epochs=1).fit(module, loader())
    mixup = lm.LatentMixupCollate(linear_generator, toy_bank, dataset=toy_dataset, prob=0.5, seed=3)
    assert same(module.seen, [mixup(*batch) for batch in loader()])


@pytest.mark.parametrize("ahead", [False, True])
def test_a_run_goes_on_from_an_epochs_end(callback, loader, linear_generator, toy_bank, ahead, tmp_path):
    """By the callback, or by a loader that decodes ahead and has a callback that names the epoch."""

    class SetEpoch(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            trainer.train_dataloader.set_epoch(trainer.current_epoch)

    def fit(epochs, checkpoint=None):
        module = Watched()
        trainer = trainer_with(SetEpoch() if ahead else callback(seed=0), max_epochs=epochs)
        data = lm.LatentMixupLoader(loader(), linear_generator, toy_bank, seed=0) if ahead else loader()
        trainer.fit(module, data, ckpt_path=checkpoint)
        return trainer, module.seen

    whole = fit(2)[1]
    assert len(whole) == 8
    fit(1)[0].save_checkpoint(tmp_path / "one.ckpt")
    assert same(fit(2, tmp_path / "one.ckpt")[1], whole[4:])


def test_a_run_goes_on_in_the_middle_of_an_epoch(callback, loader, tmp_path):
    """The order of batches is torchdata's, the mixes are ours."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    class SaveSix(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 6:
                trainer.save_checkpoint(tmp_path / "six.ckpt")

    def fit(*callbacks, checkpoint=None):
        module = Watched()
        trainer_with(callback(prob=0.5, seed=0), *callbacks).fit(module, loader(stateful), ckpt_path=checkpoint)
        return module.seen

    whole = fit(SaveSix())
    assert len(whole) == 8
    assert same(fit(checkpoint=tmp_path / "six.ckpt"), whole[6:])


def test_only_images_that_the_loader_gives_are_mixed(callback, loader, toy_dataset):
    mixing = callback()
    trainer_with(mixing, max_epochs=1).fit(Watched(), loader(data=Subset(toy_dataset, range(20, 32))))
    assert mixing.mixup._mixer.view.rows.tolist() == list(range(20, 32))


@pytest.mark.parametrize("shared_out", [False, True])
@pytest.mark.parametrize("kind", ["indices", "weights"])
def test_those_of_a_sampler_also_where_it_is_shared_out(toy_dataset, shared_out, kind):
    weights = torch.zeros(50).index_fill(0, torch.arange(7, 11), 1.0)
    sampler = SubsetRandomSampler(range(7, 11)) if kind == "indices" else WeightedRandomSampler(weights, 9)
    if shared_out:
        sampler = DistributedSamplerWrapper(sampler, num_replicas=2, rank=0)
    data = data_of(DataLoader(toy_dataset, 4, sampler=sampler))
    assert [*data.indices] == [7, 8, 9, 10]
    assert data_of(DataLoader(toy_dataset, 4)) is toy_dataset


class Pictures(Logger):
    """A logger with a ``SummaryWriter`` for its experiment."""

    name, version = "pictures", 0

    def __init__(self):
        super().__init__()
        self.given = []
        self.experiment = self

    def add_image(self, tag, image, global_step, dataformats):
        self.given.append((tag, image.shape[2], dataformats, global_step))

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params, *args, **kwargs):
        pass


def test_a_sheet_each_epoch_changes_nothing(callback, loader):
    logger, module, plain = Pictures(), Watched(), Watched()
    torch.manual_seed(1)
    trainer_with(callback(prob=0.5), logger=logger).fit(module, loader(shuffle=True))
    torch.manual_seed(1)
    trainer_with(callback(prob=0.5)).fit(plain, loader(shuffle=True))
    assert logger.given == [("latent_mixup", 3, "HWC", step) for step in (0, 4)]
    assert same(module.seen, plain.seen)


class Kept(L.Callback):
    """Saves what a rank has seen."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        weights = [weight.detach() for weight in pl_module.model.parameters()]
        torch.save({"seen": pl_module.seen, "weights": weights}, self.folder / f"{trainer.global_rank}.pt")


def test_two_processes_see_different_images_and_mixes_and_agree(callback, loader, tmp_path, linear_generator, toy_bank):
    trainer = trainer_with(callback(prob=0.5, seed=0), Kept(tmp_path), strategy="ddp_spawn", devices=2, max_epochs=1)
    module = Watched()
    trainer.fit(module, loader())
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert len(one["seen"]) == len(other["seen"]) == 2  # of four batches
    assert all(torch.equal(a, b) for a, b in zip(one["weights"], other["weights"], strict=True))
    for rank in (one, other):
        assert all(targets.shape == (len(images), 3) for images, targets in rank["seen"])
        assert any((targets.max(1).values < 1).any() for _, targets in rank["seen"])
    assert not torch.equal(one["seen"][0][0], other["seen"][0][0])


def test_what_it_refuses(callback, loader):
    with pytest.raises(TypeError, match="did you mean 'prob'"):
        callback(probb=0.5)
    with pytest.raises(TypeError, match="a data set is needed: got DataLoader"):
        callback(dataset=loader())
    with pytest.raises(ValueError, match="a trainer takes one LatentMixup"):
        trainer_with(callback(), callback(policy=Policy())).fit(Watched(), loader())
    with pytest.raises(TypeError, match="one training loader: got a list of them"):
        trainer_with(callback()).fit(Watched(), [loader(), loader()])
