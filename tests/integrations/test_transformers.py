"""The Trainer that mixes: training alone, the loss, resuming, other Trainers beside it."""

from __future__ import annotations

import sys
import warnings
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import latent_mixup as lm

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")
    from latent_mixup.integrations.transformers import LatentMixupTrainer, soft_cross_entropy

pytestmark = pytest.mark.filterwarnings("ignore")


class Dicts(torch.utils.data.Dataset):
    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        image, label = self.dataset[index]
        return {"pixel_values": image, "labels": label}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.config = nn.Linear(16, 3), transformers.PretrainedConfig()

    def forward(self, pixel_values, labels=None):
        return transformers.modeling_outputs.ImageClassifierOutput(logits=self.linear(pixel_values.flatten(1)))


class Seen:
    """Stands for the loss, and keeps the labels of each training step and each evaluation."""

    def __init__(self):
        self.training, self.evaluation = [], []

    def __call__(self, outputs, labels, num_items_in_batch=None):
        (self.training if torch.is_grad_enabled() else self.evaluation).append(labels)
        return soft_cross_entropy(outputs, labels, num_items_in_batch)


@pytest.fixture
def trainer(toy_dataset, linear_generator, toy_bank, tmp_path):
    def make(kind=LatentMixupTrainer, loss=None, seed=0, **options):
        settings = {"per_device_train_batch_size": 16, "num_train_epochs": 2, "report_to": [], "disable_tqdm": True}
        settings |= {"use_cpu": True, "save_strategy": "no", "dataloader_pin_memory": False, **options}
        arguments = transformers.TrainingArguments(str(tmp_path), **settings)
        mixup = lm.LatentMixupCollate(linear_generator, toy_bank, dataset=toy_dataset, seed=seed)
        data = {"train_dataset": Dicts(toy_dataset), "eval_dataset": Dicts(toy_dataset)}
        transformers.set_seed(0)
        return kind(Model(), arguments, mixup=mixup, compute_loss_func=loss, **data)

    return make


def test_training_is_mixed_and_evaluation_is_not(trainer, toy_dataset):
    seen = Seen()
    found = trainer(loss=seen)
    found.train()
    found.evaluate()
    assert [tuple(labels.shape) for labels in seen.training] == 2 * ([(16, 3)] * 3 + [(2, 3)])
    assert all(labels.dtype == torch.float32 for labels in seen.training)
    assert torch.equal(torch.cat(seen.evaluation), toy_dataset.labels)


def test_the_loss_is_the_cross_entropy(trainer, toy_dataset):
    found = trainer()
    found.train()
    images, labels = toy_dataset.images, toy_dataset.labels
    with torch.no_grad():
        expected = F.cross_entropy(found.model(images).logits, labels)
    assert found.evaluate()["eval_loss"] == pytest.approx(float(expected), abs=1e-4)


def test_accumulated_batches_are_one_large_batch():
    draw = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(6, 10, generator=draw), torch.randn(6, 10, generator=draw).softmax(1)
    whole = soft_cross_entropy(Namespace(logits=logits), targets)
    torch.testing.assert_close(whole, F.cross_entropy(logits, targets))
    parts = [soft_cross_entropy(Namespace(logits=logits[rows]), targets[rows], 6) for rows in (slice(4), slice(4, 6))]
    torch.testing.assert_close(sum(parts), whole)


def test_a_run_goes_on_in_the_middle_of_an_epoch(trainer, tmp_path):
    whole, rest = Seen(), Seen()
    trainer(loss=whole, save_strategy="steps", save_steps=6).train()  # of four steps an epoch
    assert not torch.equal(whole.training[0], whole.training[4])
    trainer(loss=rest).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert len(rest.training) == 2
    assert all(torch.equal(found, expected) for found, expected in zip(rest.training, whole.training[6:], strict=True))


def test_it_goes_beside_a_trainer_with_a_loss_of_its_own(trainer):
    seen = []

    class Theirs(transformers.Trainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            seen.append(inputs["labels"].ndim)
            return super().compute_loss(model, inputs, *args, **kwargs)

    class Both(LatentMixupTrainer, Theirs):
        pass

    found = trainer(Both, num_train_epochs=1)
    found.train()
    found.evaluate()
    assert seen == [2] * 4 + [1] * 7


def test_smoothing_that_the_loss_would_not_do_is_an_error(trainer):
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0\.1; pass LatentMixupCollate\(label_smoothing=\)"):
        trainer(label_smoothing_factor=0.1)


@pytest.mark.parametrize(("module", "library"), [("transformers", "transformers"), ("lightning", "lightning.pytorch")])
def test_a_missing_library_names_the_extra(module, library, monkeypatch):
    name = f"latent_mixup.integrations.{module}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf'^{name} needs {module}: pip install "latent-mixup\[integrations\]"$'):
        __import__(name)
