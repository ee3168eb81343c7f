"""Which of several mixes is kept: the one that a classifier does worst on."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.utils.data import get_worker_info

from latent_mixup.classifiers import logits_of_output
from latent_mixup.networks import eval_mode
from latent_mixup.policies.partners import MAX_CANDIDATES
from latent_mixup.policies.settings import Between, checked


class Hardest:
    """Of several mixes of a sample, the one with the largest cross-entropy of its label.

    All of them are decoded, and the classifier looks at them in eval mode, without a gradient. It is meant to be the
    one in training, so its weights are those of the moment: the mixes depend on them, and nothing is decoded ahead.

    Args:
        model: Images ``[k, C, H, W]``, as the wrapper gives them, to logits ``[k, num_classes]``; on the generator's
            device.
        candidates: Mixes of each sample, from 2.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``candidates`` is out of range.

    Example:
        >>> hardest = Hardest(nn.Sequential(nn.Flatten(), nn.Linear(48, 10)), candidates=4)
        >>> hardest(torch.rand(8, 3, 4, 4), torch.rand(8, 10).softmax(1)).shape
        torch.Size([2])
    """

    def __init__(self, model: nn.Module, candidates: int = 8) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"Hardest needs a classifier, a torch.nn.Module: got {model!r:.80}")
        self.candidates: int = checked(Annotated[int, Between(2, MAX_CANDIDATES)], candidates, "Hardest.candidates")
        self.model = model

    @torch.no_grad()
    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """The place of the hardest of each ``candidates`` in a row, int64 ``[k]``.

        Args:
            images: ``[k * candidates, C, H, W]``.
            targets: Soft, ``[k * candidates, num_classes]``.

        Raises:
            RuntimeError: This is a worker process, whose copy of the classifier is not trained.
            ValueError: The model does not return finite logits of these classes.
        """
        if get_worker_info() is not None:
            raise RuntimeError(
                "Hardest asks the classifier that is being trained, and a DataLoader worker has but a copy of it: use "
                "LatentMixupLoader, which decodes in the main process, or num_workers=0"
            )
        with eval_mode(self.model):
            logits = logits_of_output(self.model(images.clone()), len(images), targets.shape[1])
        losses = -(targets.to(logits) * logits.float().log_softmax(1)).sum(1)
        hardest = losses.view(-1, self.candidates).argmax(1)
        return hardest + self.candidates * torch.arange(len(hardest), device=hardest.device)
