"""StyleGAN2 slow and obvious, from the papers' arithmetic: one image at a time, every sum over a kernel a loop.

Works on a ``state_dict`` with the published names, and uses no convolution operator.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

State = dict[str, Tensor]


def correlate(x: Tensor, weight: Tensor) -> Tensor:
    """``[I, H, W]`` with ``[O, I, k, k]``, where the kernel fits."""
    size = weight.shape[2]
    high, wide = x.shape[1] - size + 1, x.shape[2] - size + 1
    return sum(
        torch.einsum("oi,ihw->ohw", weight[:, :, i, j], x[:, i : i + high, j : j + wide])
        for i in range(size)
        for j in range(size)
    )


def pad(x: Tensor, before: int, after: int) -> Tensor:
    out = x.new_zeros(x.shape[0], x.shape[1] + before + after, x.shape[2] + before + after)
    out[:, before : before + x.shape[1], before : before + x.shape[2]] = x
    return out


def zeros_between(x: Tensor) -> Tensor:
    """``[C, H, W]`` to ``[C, 2H, 2W]``: a zero after each pixel, on both axes."""
    out = x.new_zeros(x.shape[0], 2 * x.shape[1], 2 * x.shape[2])
    out[:, ::2, ::2] = x
    return out


def low_pass(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve (so: the kernel turned round) each channel, times 4."""
    return torch.cat([correlate(channel[None], 4 * kernel.flip(0, 1)[None, None]) for channel in x])


def linear(state: State, name: str, x: Tensor, lr: float = 1.0) -> Tensor:
    weight = state[f"{name}.weight"]
    return (weight * (lr / math.sqrt(weight.shape[1]))) @ x + state[f"{name}.bias"] * lr


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)


def clamp(x: Tensor, limit: float | None) -> Tensor:
    return x if limit is None else torch.maximum(torch.minimum(x, x.new_tensor(limit)), x.new_tensor(-limit))


def norm2(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean() + 1e-8)


def mapping(state: State, z: Tensor, c: Tensor | None, layers: int) -> Tensor:
    """One code ``[z_dim]`` and a row of classes ``[c_dim]`` to w."""
    x = norm2(z)
    if c is not None:
        x = torch.cat([x, norm2(linear(state, "mapping.embed", c))])
    for i in range(layers):
        x = leaky(linear(state, f"mapping.fc{i}", x, lr=0.01))
    return x


def layer(state: State, name: str, x: Tensor, w: Tensor, limit: float | None, noise: bool) -> Tensor:
    """One 3x3 layer on one image ``[I, R, R]``."""
    style = linear(state, f"{name}.affine", w)
    weight = state[f"{name}.weight"] * style[None, :, None, None]
    weight = weight / torch.sqrt((weight * weight).sum((1, 2, 3), keepdim=True) + 1e-8)
    if name.endswith("conv0"):
        x = pad(zeros_between(x), 2, 1)  # a transposed convolution: the kernel turned round on a stretched image
        x = low_pass(pad(correlate(x, weight.flip(2, 3)), 1, 1), state[f"{name}.resample_filter"])
    else:
        x = correlate(pad(x, 1, 1), weight)
    if noise and f"{name}.noise_const" in state:
        x = x + state[f"{name}.noise_const"] * state[f"{name}.noise_strength"]
    x = leaky(x + state[f"{name}.bias"][:, None, None])
    return clamp(x, None if limit is None else limit * math.sqrt(2))


def to_rgb(state: State, name: str, x: Tensor, w: Tensor, limit: float | None) -> Tensor:
    style = linear(state, f"{name}.affine", w) / math.sqrt(x.shape[0])
    weight = state[f"{name}.weight"] * style[None, :, None, None]
    return clamp(correlate(x, weight) + state[f"{name}.bias"][:, None, None], limit)


def synthesis(state: State, ws: Tensor, limit: float | None, noise: bool = True) -> Tensor:
    """``[num_ws, w_dim]`` to one image."""
    x = layer(state, "synthesis.b4.conv1", state["synthesis.b4.const"], ws[0], limit, noise)
    image = to_rgb(state, "synthesis.b4.torgb", x, ws[1], limit)
    resolution, i = 8, 1
    while f"synthesis.b{resolution}.conv0.weight" in state:
        block = f"synthesis.b{resolution}"
        x = layer(state, f"{block}.conv0", x, ws[i], limit, noise)
        x = layer(state, f"{block}.conv1", x, ws[i + 1], limit, noise)
        image = low_pass(pad(zeros_between(image), 2, 1), state[f"{block}.resample_filter"])
        image = image + to_rgb(state, f"{block}.torgb", x, ws[i + 2], limit)
        resolution, i = 2 * resolution, i + 2
    return image
