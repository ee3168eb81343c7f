"""Images that are not square, from the inversion to the scores of a classifier, by small untrained networks."""

from __future__ import annotations

import io
import json

import pytest
import torch
from commands import json_of, output_of
from conftest import LabelledImages
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import latent_mixup as lm
from latent_mixup import robustness
from latent_mixup.demo.preview import preview_sheet
from latent_mixup.encoders import MLPEncoder, ReStyleEncoder, load_encoder
from latent_mixup.generators import Identity, Linear, wrap
from latent_mixup.images import from_uint8, to_uint8
from latent_mixup.integrations import sheet_of
from latent_mixup.losses import LPIPS, PerceptualLoss
from latent_mixup.quality import check_codes
from latent_mixup.quality.report import report
from latent_mixup.training import EncoderRecipe, train_encoder

SIZE = (24, 40)
N = 24


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def photos(n=N, channels=3, size=SIZE) -> LabelledImages:
    """Smooth pictures of three classes in uint8."""
    draw = torch.Generator().manual_seed(1)
    coarse = torch.rand(n, channels, 3, 5, generator=draw) * 2 - 1
    coarse += torch.eye(3).repeat_interleave(1, 0)[torch.arange(n) % 3][:, :channels, None, None] - 0.5
    images = nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    return LabelledImages(to_uint8(images.clamp(-1, 1)), torch.arange(n) % 3)


def decoder() -> nn.Module:
    """Somebody's own: 6 numbers to a picture of 24 x 40."""
    widen = nn.Sequential(nn.Linear(6, 8 * 6 * 10), nn.Unflatten(1, (8, 6, 10)), nn.Upsample(scale_factor=4))
    last = nn.Conv2d(8, 3, 3, padding=1)
    nn.init.normal_(last.weight, std=0.8)  # from black to white
    return nn.Sequential(widen, last, nn.Sigmoid())


def diffusers_vae():
    pytest.importorskip("diffusers", exc_type=ImportError)
    from latent_mixup.generators import DiffusersVAE

    config = {
        "block_out_channels": (8, 8, 8),
        "norm_num_groups": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
    }
    return seeded(lambda: DiffusersVAE("AutoencoderKL", config, img_resolution=SIZE))


GENERATORS = {
    "wrap": lambda: wrap(seeded(decoder), latent_shape=(6,), image_range=(0, 1)),
    "linear": lambda: Linear.fit(from_uint8(photos().images), 6),
    "identity": lambda: Identity(3, SIZE),
    "diffusers": diffusers_vae,
}
SAVED = [name for name in GENERATORS if name != "wrap"]
every = pytest.mark.parametrize("name", GENERATORS)


def inverted(generator, dataset=None, **options):
    return lm.invert(
        photos() if dataset is None else dataset,
        generator,
        **{"steps": 2, "restarts": 0, "draws": 8, "loss": "pixels", "progress": False, **options},
    )


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


# ---- every generator, from the inversion to a pool -------------------------------------------------


@every
def test_images_are_inverted_mixed_rendered_and_shown(name, tmp_path):
    generator, data = GENERATORS[name](), photos()
    assert (generator.img_size, generator.image_shape) == (SIZE, (3, *SIZE))
    bank = inverted(generator, data, out=tmp_path / "bank")
    assert (len(bank), bank.latent_shape) == (N, generator.latent_shape)
    assert lm.LatentBank.from_pretrained(tmp_path / "bank").digest() == bank.digest()
    assert bank.rows_of_data(data, generator).equal(torch.arange(N))

    shared = {"seed": 0, "prob": 0.5}
    dataset = lm.LatentMixupDataset(data, generator, bank, **shared)
    collate = lm.LatentMixupCollate(generator, bank, dataset=data, **shared)
    loader = lm.LatentMixupLoader(DataLoader(data, 8), generator, bank, **shared)
    samples = [dataset[index] for index in range(8)]
    for images, targets in (
        (torch.stack([image for image, _ in samples]), torch.stack([target for _, target in samples])),
        collate([data[index] for index in range(8)]),
        next(iter(loader)),
    ):
        assert (images.shape, images.dtype) == ((8, 3, *SIZE), torch.uint8)
        assert targets.shape == (8, 3)
        is_own = (images == data.images[:8]).flatten(1).all(1)
        assert 0 < is_own.sum() < 8
        assert (targets[is_own].amax(1) == 1).all()

    for picture in (generator.show(), bank.show(generator), dataset.show(), collate.show(), loader.show()):
        assert picture.width > 8 * SIZE[1]
    assert opened(preview_sheet(generator, bank, [(0, 1)], rows=2)).height == 2 * (2 * SIZE[0] + 2) + 2 + 20
    assert opened(sheet_of(collate)).width > 8 * SIZE[1]

    lm.render(generator, bank, tmp_path / "pool", n=12, progress=False)
    pool = lm.RenderedMixupDataset(tmp_path / "pool", dataset=data, bank=bank, prob=0.5, seed=0)
    images = torch.stack([pool[index][0] for index in range(N)])
    assert (images.shape, images.dtype) == ((N, 3, *SIZE), torch.uint8)
    assert pool.images_uint8.shape == (12, 3, *SIZE)


@pytest.mark.parametrize("name", SAVED)
def test_files_say_the_size_and_keep_it(name, tmp_path):
    generator = GENERATORS[name]()
    folder = generator.save_pretrained(tmp_path / "generator")
    assert json.loads((folder / "config.json").read_text())["arguments"]["img_resolution"] == [*SIZE]
    assert "24 x 40, RGB" in (folder / "README.md").read_text()
    read = lm.load_generator(folder)
    codes = generator.sample_latents(2, torch.Generator().manual_seed(0))
    assert read.decode(codes).equal(generator.decode(codes))
    told = json_of("info", folder, "--no-self-test", "--sheet", tmp_path / "sheet.png")
    assert told["generator"]["img_resolution"] == [*SIZE]
    assert "24 x 40, RGB" in output_of("info", folder, "--no-self-test")


@every
def test_a_self_test_runs(name):
    result = lm.inversion.self_test(GENERATORS[name](), images=2, steps=4)
    assert {check.name: check.passed for check in result.checks}["images"]


# ---- inversion -------------------------------------------------------------------------------------


def test_lpips_and_the_drawn_start_bring_images_nearer():
    generator = GENERATORS["wrap"]()
    data = LabelledImages(to_uint8(generator.decode(generator.sample_latents(8))), torch.arange(8) % 3)
    loss = PerceptualLoss(lpips=LPIPS("alex", weights="random", resize=32))
    start, found = (inverted(generator, data, loss=loss, steps=steps).mse.mean() for steps in (0, 20))
    assert found < start / 2


def test_lpips_keeps_the_shape_of_what_it_resizes():
    images, others = torch.rand(2, 2, 3, 24, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    small, whole = LPIPS("alex", weights="random", resize=48), LPIPS("alex", weights="random")
    enlarged = [nn.functional.interpolate(each, (48, 80), mode="bilinear", antialias=True) for each in (images, others)]
    torch.testing.assert_close(small(images, others), whole(*enlarged))


def test_images_of_another_size_are_told_how_to_get_the_generators():
    for size, mend in (
        ((48, 80), r"v2\.Resize\(\(24, 40\)\)"),
        ((48, 48), r"v2\.Resize\(\(40, 40\)\) and v2\.CenterCrop\(\(24, 40\)\)"),
        ((40, 24), r"v2\.Resize\(\(67, 40\)\) and v2\.CenterCrop\(\(24, 40\)\)"),
        ((20, 36), r"v2\.Resize\(\(24, 43\)\) and v2\.CenterCrop\(\(24, 40\)\), or v2\.Pad\(2\)"),
    ):
        with pytest.raises(ValueError, match=rf"size \[3, 24, 40\]: got \[3, {size[0]}, {size[1]}\]; .* e\.g\. {mend}"):
            inverted(Identity(3, SIZE), photos(size=size))


@pytest.mark.parametrize(
    ("make", "arch", "network"),
    [
        (lambda g: MLPEncoder(g, (16,)), "mlp", {"widths": (16,)}),
        (
            lambda g: ReStyleEncoder(g, channels=(4, 4, 4, 4), layers=(1, 1, 1, 1)),
            "restyle",
            {"channels": (4, 4, 4, 4), "layers": (1, 1, 1, 1), "passes": 1},
        ),
    ],
)
def test_encoders_are_trained_saved_and_used(make, arch, network, tmp_path):
    generator, data = GENERATORS["linear"](), photos()
    images = from_uint8(data.images)
    assert make(generator)(images).shape == (N, 6)
    with pytest.raises(ValueError, match=r"images need shape \[B, 3, 24, 40\]: got \[24, 3, 40, 24\]"):
        make(generator)(images.transpose(2, 3))
    trained = train_encoder(
        generator,
        tmp_path / "run",
        arch=arch,
        images_uint8=data.images,
        network=network,
        recipe=EncoderRecipe(steps=2, batch_size=4),
    )
    read = load_encoder(trained.save_pretrained(tmp_path / "encoder"), generator)
    assert read(images).equal(trained(images))
    assert "24 x 40, RGB" in (tmp_path / "encoder" / "README.md").read_text()
    assert len(inverted(generator, data, encoder=read)) == N


# ---- square for the generator, another size for the classifier -------------------------------------


def test_square_codes_are_mixed_into_images_that_are_not_square(tmp_path):
    """The classifier's images are 24 x 40, the generator saw them at 16 x 16."""
    data = photos()
    square = LabelledImages(v2.functional.resize(data.images, [16, 16]), data.labels)
    generator = Linear.fit(from_uint8(square.images), 6)
    bank = inverted(generator, square)
    settings = {"transform": v2.Resize(SIZE), "seed": 0}
    for images in (
        next(iter(lm.LatentMixupLoader(DataLoader(data, 8), generator, bank, **settings)))[0],
        lm.LatentMixupCollate(generator, bank, dataset=data, **settings)([data[index] for index in range(8)])[0],
        torch.stack([lm.LatentMixupDataset(data, generator, bank, **settings)[index][0] for index in range(8)]),
    ):
        assert (images.shape, images.dtype) == ((8, 3, *SIZE), torch.uint8)
    lm.render(generator, bank, tmp_path, n=8, progress=False)
    pool = lm.RenderedMixupDataset(tmp_path, dataset=data, bank=bank, transform=v2.Resize(SIZE))
    assert pool[0][0].shape == (3, *SIZE)
    with pytest.raises(ValueError, match=r"\[3, 16, 16\] for \[3, 24, 40\]; .* transform=v2\.Resize\(\(24, 40\)\)"):
        next(iter(lm.LatentMixupLoader(DataLoader(data, 8), generator, bank)))


# ---- quality and scores ----------------------------------------------------------------------------


@every
def test_a_report_shows_them(name, tmp_path):
    pytest.importorskip("matplotlib")
    generator = GENERATORS[name]()
    record = report(inverted(generator), photos(), generator, tmp_path, columns=2)
    assert record["rows"]["reported"] == N
    assert opened((tmp_path / "report.png").read_bytes()).width > 1000


@pytest.mark.parametrize("labelled", [True, False])
def test_codes_are_checked_beside_pixels(labelled, monkeypatch):
    for name in ("JUDGE_STEPS", "LEAST_JUDGE_STEPS"):
        monkeypatch.setattr(f"latent_mixup.quality.code_check.{name}", 3)
    data = photos(400, size=(8, 13))
    if not labelled:
        data.labels = torch.full((400,), -1)
    generator = Linear.fit(from_uint8(data.images), 6)
    found = check_codes(inverted(generator, data, steps=0), data, generator, progress=False)
    assert found["judge"]["learns"] == ("classes" if labelled else "rotations")
    assert found["numbers"]["pixels"] == 3 * 8 * 13


def test_a_classifier_gets_its_scores():
    data = photos()
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.Flatten(), nn.LazyLinear(3)))
    model(torch.zeros(1, 3, *SIZE))
    found = robustness.evaluate(
        model.eval(),
        from_uint8(data.images),
        data.labels,
        bounds=(-1, 1),
        deepfool_images=4,
        pgd_images=4,
        pgd_steps=2,
        corruption_images=4,
        severities=(3,),
    )
    assert found["deepfool"]["input_size"] == [3, *SIZE]
    assert found["test_images"] == N
