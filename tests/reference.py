"""Slow, obvious implementations of the method, written from the paper; fast ones are compared with them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def deepfool_one_image(
    model: nn.Module, image: Tensor, num_classes: int = 10, overshoot: float = 0.02, max_iter: int = 50
) -> tuple[Tensor, int]:
    """DeepFool on one image ``[C, H, W]`` as the paper ran it: the perturbation and the steps taken."""

    def logits_of(x: Tensor) -> Tensor:
        return model(x.unsqueeze(0))[0]

    def gradient(x: Tensor, c: int) -> Tensor:
        x = x.clone().requires_grad_(True)
        logits_of(x)[c].backward(inputs=[x])
        assert x.grad is not None
        return x.grad

    ranked = logits_of(image).argsort(descending=True).tolist()[:num_classes]
    own = ranked[0]
    r_total = torch.zeros_like(image)
    x = image
    steps = 0
    while steps < max_iter and int(logits_of(x).argmax()) == own:
        nearest, w = float("inf"), None
        for k in ranked[1:]:
            w_k = gradient(x, k) - gradient(x, own)
            f_k = (logits_of(x)[k] - logits_of(x)[own]).item()
            if abs(f_k) / float(w_k.norm()) < nearest:
                nearest, w = abs(f_k) / float(w_k.norm()), w_k
        assert w is not None
        r_total = r_total + (nearest + 1e-4) * w / w.norm()
        x = image + (1 + overshoot) * r_total
        steps += 1
    return (1 + overshoot) * r_total, steps


def pgd_one_image(
    model: nn.Module,
    image: Tensor,
    label: int,
    start: Tensor,
    norm: str,
    eps: float,
    step_size: float,
    steps: int,
    bounds: tuple[float, float],
) -> tuple[Tensor, int, bool]:
    """Projected gradient descent on one image ``[C, H, W]``: the image reached, the steps taken, whether it fools."""
    x = start
    for step in range(steps + 1):
        leaf = x.clone().requires_grad_(True)
        logits = model(leaf.unsqueeze(0))[0]
        if int(logits.argmax()) != label:
            return x, step, True
        if step == steps:
            break
        loss = torch.logsumexp(logits, 0) - logits[label]
        gradient = torch.autograd.grad(loss, leaf)[0]
        if norm == "linf":
            x = x + step_size * gradient.sign()
            x = torch.max(torch.min(x, image + eps), image - eps)
        else:
            x = x + step_size * gradient / gradient.norm()
            distance = float((x - image).norm())
            if distance > eps:
                x = image + (x - image) * eps / distance
        x = x.clamp(*bounds)
    return x, steps, False


def mix_one_by_one(
    decode: object, latents: Tensor, labels: Tensor, partners: list[int], lam: list[float], num_classes: int
) -> tuple[Tensor, Tensor]:
    """Latent mixup, section 1.1.3, one sample at a time: decoded images and soft targets."""
    images, targets = [], []
    for i, (partner, weight) in enumerate(zip(partners, lam, strict=True)):
        code = weight * latents[i] + (1 - weight) * latents[partner]
        images.append(decode(code.unsqueeze(0))[0])  # type: ignore[operator]
        target = torch.zeros(num_classes)
        target[int(labels[i])] += weight
        target[int(labels[partner])] += 1 - weight
        targets.append(target)
    return torch.stack(images), torch.stack(targets)


def nearest_of_own_class(codes: Tensor, labels: list[int], row: int, k: int) -> list[int]:
    """The ``k`` rows of a row's own class with the nearest codes, the nearest first; of a class of one the row."""
    others = [other for other in range(len(codes)) if labels[other] == labels[row] and other != row]
    others.sort(key=lambda other: float((codes[other].double() - codes[row].double()).square().sum()))
    return others[:k] or [row]


def invert_one_image(
    decode: object,
    target: Tensor,
    start: Tensor,
    loss: object,
    steps: int,
    lr: float,
    betas: tuple[float, float],
) -> tuple[Tensor, float]:
    """Inversion of one image ``[C, R, R]`` with Adam written out: the best code seen, and its loss."""
    code, best, best_loss = start, start, float("inf")
    mean, square = torch.zeros_like(start), torch.zeros_like(start)
    for step in range(steps + 1):
        x = code.clone().requires_grad_(True)
        value = loss(decode(x.unsqueeze(0)), target.unsqueeze(0))[0]  # type: ignore[operator]
        if value.item() < best_loss:
            best, best_loss = code, value.item()
        if step == steps:
            break
        gradient = torch.autograd.grad(value, x)[0]
        mean = betas[0] * mean + (1 - betas[0]) * gradient
        square = betas[1] * square + (1 - betas[1]) * gradient**2
        rate = lr * (1 + math.cos(math.pi * step / steps)) / 2
        unbiased = mean / (1 - betas[0] ** (step + 1)), square / (1 - betas[1] ** (step + 1))
        code = code - rate * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    return best, best_loss
