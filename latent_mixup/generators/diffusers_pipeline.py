"""Latent diffusion models of diffusers as generators: a mix is noised in part, and denoised by the model (SDEdit).

Nothing is loaded here: the pipeline, or its parts, are objects of the user's own.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from latent_mixup import files
from latent_mixup.generators.base import Generator, sides
from latent_mixup.generators.diffusers_vae import CLASSES, DiffusersVAE, factor_of
from latent_mixup.sampling import keyed_generator

CONDITION_KEYS = {  # networks that predict the noise => the argument that takes their condition
    "UNet2DConditionModel": "encoder_hidden_states",
    "DiTTransformer2DModel": "class_labels",
    "UNet2DModel": "class_labels",
}
SCHEDULERS = (  # compared with diffusers' own pipelines in the tests; all start anywhere in their time steps
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "UniPCMultistepScheduler",
)
OTHER_INPUTS = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim")  # as SDXL has
NAME_BITS = 63

Term: TypeAlias = tuple[Tensor, Tensor | None]  # weights [B] and rows of conditions [B] of one evaluation


class DiffusersPipeline(Generator):
    """A latent diffusion model of diffusers, which makes a mix of codes look like one of its images.

    A code is that of :class:`DiffusersVAE` (in ``vae``). ``decode`` adds noise to it, as much as an image has
    ``strength * steps`` steps before the end of ``steps``, lets the model remove it in these steps, and decodes what
    comes out by the autoencoder. With ``strength=0`` that is the autoencoder's own decode; with 1 little of the code is
    left. A mix costs ``strength * steps`` evaluations of the network: render a pool, on a GPU.

    Noise is drawn for each code by itself. It depends on ``seed`` and on the code, up to its rounding: the same code
    gives the same image, in any batch.

    Inversion is the autoencoder's: :attr:`coder` is ``vae``, so that a bank fits any strength. ``decode`` itself
    has no gradient.

    The model may be a ``UNet2DConditionModel`` with a CLIP text encoder (Stable Diffusion 1 and 2), a
    ``DiTTransformer2DModel`` or a ``UNet2DModel`` in latent space, with classes or without. With more than one
    condition ``decode`` takes ``targets``, which ``render`` and the wrappers hand to it: the predicted noise is the
    mean over the conditions of a mix, weighted by its label.

    Args:
        pipeline: A pipeline of diffusers that you have loaded, or its parts by name: ``vae`` (or ``vqvae``), ``unet``
            or ``transformer``, ``scheduler``; for text ``text_encoder`` and ``tokenizer``. Its network is used as it
            is, in its dtype, and frozen in place; autoencoder and scheduler are copied, the former in float32.
        strength: Share of the steps that are taken, in [0, 1]; rounded to whole steps.
        steps: Number of steps from pure noise to an image.
        guidance: Classifier-free guidance, ``guidance * conditioned + (1 - guidance) * unconditioned``; other than 1 it
            costs one more evaluation a step.
        prompts: A text for all images; or one for each class of the bank, in the order of its labels. None: the empty
            text.
        classes: A class of the model for all images; or one for each class of the bank. None: no class.
        seed: Names all noise.
        img_resolution: Height and width of an image in pixels, one number for both or ``(height, width)``. None: the
            size that the model was trained for.
        img_channels: Those of the autoencoder; or 1 with an autoencoder of RGB.

    Raises:
        ImportError: diffusers is not installed.
        TypeError: ``pipeline`` is neither a pipeline nor parts.
        ValueError: A part is missing or of a class that is not supported, the network cannot take codes of this size or
            such conditions, or a setting is out of its range.

    Reference: Meng et al., "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations", 2022,
    algorithm 1; Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, equation 6; Liu et al., "Compositional
    Visual Generation with Composable Diffusion Models", 2022, section 4, for more than one condition.

    Example:
        >>> pipe = diffusers.DiTPipeline.from_pretrained("facebook/DiT-XL-2-256").to("cuda")  # doctest: +SKIP
        >>> generator = DiffusersPipeline(pipe, strength=0.4, classes=[207, 281])  # doctest: +SKIP
        >>> generator.decode(codes, targets=torch.tensor([[0.3, 0.7]])).shape  # doctest: +SKIP
        torch.Size([1, 3, 256, 256])
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        strength: float = 0.5,
        steps: int = 20,
        guidance: float = 1.0,
        prompts: str | Sequence[str] | None = None,
        classes: int | Sequence[int] | None = None,
        seed: int = 0,
        img_resolution: int | tuple[int, int] | None = None,
        img_channels: int = 3,
    ) -> None:
        super().__init__()
        parts = _parts_of(pipeline)
        self.strength, self.steps, self.guidance, self.seed = strength, steps, guidance, seed
        self.num_steps = _num_steps(strength, steps)
        vae, denoiser = parts["vae"], parts["denoiser"]
        factor = factor_of(type(vae).__name__, vae.config)
        height, width = sides(img_resolution) if img_resolution else (factor * side for side in _own_size(denoiser))
        self.vae = DiffusersVAE.from_module(vae, img_resolution=(height, width), img_channels=img_channels)
        self.denoiser: Any = denoiser
        self.scheduler: Any = copy.deepcopy(parts["scheduler"])
        self.latent_shape, self.latent_space = self.vae.latent_shape, self.vae.latent_space
        self.preferred_path = self.vae.preferred_path
        self.img_channels, self.img_resolution = self.vae.img_channels, self.vae.img_resolution
        _check_network(denoiser, self.latent_shape)

        conditions, self.num_conditions, self.has_null = _conditions(parts, prompts, classes)
        self.conditions: Tensor | None
        self.register_buffer("conditions", conditions)
        if not math.isfinite(guidance) or (guidance != 1 and not (self.has_null and self.num_conditions)):
            raise ValueError(
                "guidance needs a finite number, and other than 1 it needs prompts or classes, of a network that knows "
                f"none as well: got {guidance} for {type(denoiser).__name__} with {self.num_conditions} of them"
            )
        self.takes_targets = self.num_conditions > 1
        self._normals = torch.randn(
            (math.prod(self.latent_shape), NAME_BITS),
            generator=keyed_generator("noise-names"),
            dtype=torch.float64,
            device="cpu",
        )
        self.to(next(denoiser.parameters()).device)
        self.freeze()

    @property
    def coder(self) -> Generator:
        """The autoencoder, whose codes these are."""
        return self.vae

    def digest(self) -> str:
        """SHA-256 over weights, conditions, settings and scheduler: all that decides an image."""
        config = json.loads(self.scheduler.to_json_string())
        settings = {
            "weights": super().digest(),
            "scheduler": {key: value for key, value in config.items() if key != "_diffusers_version"},
            **{name: getattr(self, name) for name in ("num_steps", "steps", "guidance", "seed")},
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def arguments(self) -> dict[str, Any]:
        """Raise ``NotImplementedError``: a pipeline has no file format of ours."""
        raise self.no_format()

    def encode(self, images: Tensor) -> Tensor:
        """Images to codes, as :meth:`DiffusersVAE.encode` does it."""
        return self.vae.encode(images)

    def decode(self, latents: Tensor, targets: Tensor | None = None) -> Tensor:
        """Codes ``[B, C, h, w]`` to images ``[B, *image_shape]`` in [-1, 1], noised and denoised in between.

        Args:
            latents: On the generator's device.
            targets: Weight of each condition, ``[B, num_conditions]``, rows summing to 1, such as soft labels. None:
                the only condition; with more of them, or none, the empty text or no class.

        Raises:
            NotImplementedError: ``latents`` need a gradient, and ``strength`` is not 0.
            ValueError: A shape is another, or the network needs a class and ``targets`` is None.
        """
        self.check_latents(latents)
        if not self.num_steps:
            return self.vae.decode(latents)
        if latents.requires_grad and torch.is_grad_enabled():
            raise NotImplementedError(
                f"decode has no gradient with strength={self.strength}: invert with the autoencoder, "
                "latent_mixup.invert(dataset, generator.vae, steps=0)"
            )
        with torch.no_grad():
            return self.vae.decode(self._denoise(latents.float(), self._terms(len(latents), targets)))

    def _repr_png_(self) -> None:
        """No picture by itself: samples take minutes, ``show()`` draws them."""

    def _denoise(self, latents: Tensor, terms: Sequence[Term]) -> Tensor:
        """Codes with noise added and removed again, float32."""
        scheduler = copy.deepcopy(self.scheduler)  # it counts its steps
        scheduler.set_timesteps(self.steps, device=latents.device)
        times, first = scheduler.timesteps, len(scheduler.timesteps) - self.num_steps
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        streams = self._streams(latents)
        draws = {"generator": streams} if "generator" in inspect.signature(scheduler.step).parameters else {}
        noise = torch.stack([self.noise(*self.latent_shape, generator=stream) for stream in streams])
        noisy: Tensor = scheduler.add_noise(latents, noise, times[first].expand(1))
        for time in times[first:]:
            given = scheduler.scale_model_input(noisy, time)
            parts = [weights.view(-1, 1, 1, 1) * self._predict(given, time, rows) for weights, rows in terms]
            predicted = torch.stack(parts).sum(0)
            noisy = scheduler.step(predicted, time, noisy, **draws).prev_sample.float()
        return noisy

    def _predict(self, noisy: Tensor, time: Tensor, rows: Tensor | None) -> Tensor:
        """The network's output, float32, under one condition each; without the variance that some predict as well."""
        condition = {}
        if rows is not None:
            assert self.conditions is not None
            chosen = self.conditions[rows]
            dtype = self.denoiser.dtype if chosen.is_floating_point() else chosen.dtype
            condition = {CONDITION_KEYS[type(self.denoiser).__name__]: chosen.to(dtype)}
        output = self.denoiser(noisy.to(self.denoiser.dtype), time.expand(len(noisy)), **condition).sample
        return output[:, : self.latent_shape[0]].float()  # type: ignore[no-any-return]

    def _terms(self, count: int, targets: Tensor | None) -> list[Term]:
        """The evaluations of one step: their weighted sum is the prediction."""
        if targets is not None:
            return self._guided(self._of_targets(count, targets))
        weights = torch.ones(count, dtype=torch.float32, device=self.device)
        if self.conditions is None:
            return [(weights, None)]
        if self.num_conditions == 1:
            return self._guided([(weights, _row(0, weights))])
        if not self.has_null:
            raise ValueError("decode needs targets, the weight of each class: this network knows no image without one")
        return [(weights, _row(self.num_conditions, weights))]

    def _of_targets(self, count: int, targets: Tensor) -> list[Term]:
        """As many terms as a row of ``targets`` has weights other than 0."""
        if targets.shape != (count, self.num_conditions):
            raise ValueError(
                f"targets need one weight a prompt or class, [{count}, {self.num_conditions}]: got "
                f"{list(targets.shape)}; pass prompts= or classes= for each class of the bank, in its order"
            )
        targets = targets.to(self.device, torch.float32)
        weights, rows = targets.topk(int((targets != 0).sum(1).max()), dim=1)
        return list(zip(weights.T, rows.T, strict=True))

    def _guided(self, terms: list[Term]) -> list[Term]:
        """Classifier-free guidance, whose condition without a text or class is the last row."""
        if self.guidance == 1:
            return terms
        away = torch.full_like(terms[0][0], 1 - self.guidance)
        return [*((self.guidance * weights, rows) for weights, rows in terms), (away, _row(self.num_conditions, away))]

    def _streams(self, latents: Tensor) -> list[torch.Generator]:
        """The random stream of each code, named by the seed and by the sides of fixed planes that the code lies on.

        A last digit of a code, which depends on batch and processor, does not move it across a plane.
        """
        sides = latents.flatten(1).to("cpu").double() @ self._normals > 0
        names = (sides.long() << torch.arange(NAME_BITS, device="cpu")).sum(1)
        return [keyed_generator("diffusion-noise", self.seed, name) for name in names.tolist()]


def _row(number: int, like: Tensor) -> Tensor:
    return torch.full_like(like, number, dtype=torch.int64)


# --- What is supported


def _parts_of(pipeline: Any) -> dict[str, Any]:
    """``vae``, ``denoiser``, ``scheduler``, and of a text model ``text_encoder`` and ``tokenizer``."""
    found = pipeline if isinstance(pipeline, Mapping) else getattr(pipeline, "components", None)
    if not isinstance(found, Mapping):
        raise TypeError(f"a pipeline of diffusers, or a dict of its parts, is wanted: got {type(pipeline).__name__}")
    parts = {name: part for name, part in found.items() if part is not None}
    parts["vae"] = parts.get("vae", parts.get("vqvae"))
    parts["denoiser"] = parts.get("unet", parts.get("transformer"))
    wanted = {"vae": CLASSES, "denoiser": tuple(CONDITION_KEYS), "scheduler": SCHEDULERS}
    for name, classes in wanted.items():
        if (given := type(parts.get(name)).__name__) not in classes:
            hint = "; set pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)"
            what = "unet or transformer" if name == "denoiser" else name
            raise ValueError(
                f"{what} needs to be one of {', '.join(classes)}: got {given}{hint if name == 'scheduler' else ''}"
            )
    return parts


def _num_steps(strength: float, steps: int) -> int:
    """How many of the steps are taken; 0 only where that was asked for."""
    if not files.is_count(steps) or not 0 <= strength <= 1:
        raise ValueError(f"steps needs an integer from 1, strength a number in [0, 1]: got {steps!r}, {strength!r}")
    taken = round(strength * steps)
    if strength and not taken:
        raise ValueError(f"strength={strength} is less than one of {steps} steps: use more steps, or strength=0")
    return taken


def _own_size(denoiser: Any) -> tuple[int, int]:
    """Height and width of the codes that a network was trained for."""
    size = denoiser.config.sample_size
    try:
        return sides(size)
    except ValueError:
        raise ValueError(
            f"img_resolution is needed: the network names no size of its own, sample_size={size!r}"
        ) from None


def _check_network(denoiser: Any, latent_shape: tuple[int, ...]) -> None:
    """Raise ``ValueError`` unless this network takes such codes, and nothing but codes, a time and a condition."""
    config, name, (channels, height, width) = denoiser.config, type(denoiser).__name__, latent_shape
    unknown = OTHER_INPUTS + (("num_class_embeds",) if name == "UNet2DConditionModel" else ())
    if others := [key for key in unknown if config.get(key) is not None]:
        raise ValueError(f"this {name} takes further inputs ({', '.join(others)}): such models are not supported")
    if config.in_channels != channels or config.out_channels not in (channels, 2 * channels):
        raise ValueError(
            f"this {name} goes from {config.in_channels} to {config.out_channels} channels, and the codes have "
            f"{channels}: use a model that was trained on codes of this autoencoder"
        )
    found = f"got {height} x {width}"
    if name == "DiTTransformer2DModel" and (height, width) != (own := sides(config.sample_size)):
        raise ValueError(f"this {name} takes codes of {own[0]} x {own[1]}: {found}")
    halves = 2 ** (len(config.block_out_channels) - 1) if name == "UNet2DModel" else 1
    if height % halves or width % halves:
        raise ValueError(f"this {name} takes codes whose height and width are multiples of {halves}: {found}")


# --- Conditions


def _conditions(
    parts: Mapping[str, Any], prompts: str | Sequence[str] | None, classes: int | Sequence[int] | None
) -> tuple[Tensor | None, int, bool]:
    """Texts or classes as the network takes them, their number, and whether one more row, the last, is none of them."""
    denoiser = parts["denoiser"]
    name, has_text = type(denoiser).__name__, type(denoiser).__name__ == "UNet2DConditionModel"
    known = denoiser.config.get("num_embeds_ada_norm" if name == "DiTTransformer2DModel" else "num_class_embeds")
    if (prompts is not None and not has_text) or (classes is not None and (has_text or known is None)):
        takes = "prompts" if has_text else "classes" if known else "neither prompts nor classes"
        raise ValueError(f"this {name} takes {takes}: got {'prompts' if prompts is not None else 'classes'}")
    if has_text:
        texts = [prompts] if isinstance(prompts, str) else [*(prompts or ())]
        return _embedded(parts, [*texts, ""]), len(texts), True
    if known is None:
        return None, 0, False
    numbers = [classes] if isinstance(classes, int) else [*(classes or ())]
    if not all(isinstance(number, int) and 0 <= number < known for number in numbers):
        raise ValueError(f"classes needs integers from 0 to {known - 1}, which the model knows: got {classes!r:.100}")
    has_null = name == "DiTTransformer2DModel"
    if not numbers and not has_null:
        raise ValueError(f"classes is needed: this {name} knows {known} classes, and no image without one")
    return torch.tensor(numbers + [known] * has_null, dtype=torch.int64, device="cpu"), len(numbers), has_null


@torch.no_grad()
def _embedded(parts: Mapping[str, Any], texts: Sequence[str]) -> Tensor:
    """Texts as a Stable Diffusion's network sees them, ``[K, L, D]``.

    Raises:
        ValueError: Text encoder or tokenizer is missing or another kind, or a text is too long.
    """
    encoder, tokenizer = parts.get("text_encoder"), parts.get("tokenizer")
    if type(encoder).__name__ != "CLIPTextModel" or tokenizer is None:
        raise ValueError(f"text_encoder needs to be a CLIPTextModel, with its tokenizer: got {type(encoder).__name__}")
    assert isinstance(encoder, nn.Module)
    longest = tokenizer.model_max_length
    for text in texts:
        if (length := len(tokenizer(text).input_ids)) > longest:
            raise ValueError(f"prompts need at most {longest} tokens each: got {length} for {text!r:.100}")
    tokens = tokenizer([*texts], padding="max_length", max_length=longest, return_tensors="pt").input_ids
    embedded: Tensor = encoder(tokens.to(next(encoder.parameters()).device))[0]
    return embedded
