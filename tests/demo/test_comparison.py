"""Six ways to train on the same footing, on a data set of a random generator's images."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from latent_mixup import LatentBank
from latent_mixup.classifiers import PaperCNN
from latent_mixup.demo.comparison import (
    CODE_METHODS,
    METHODS,
    REAL_METHODS,
    Budget,
    Codes,
    Data,
    Run,
    circumstances,
    decoded,
    decoded_mixes,
    paper_points,
    pixel_mix_of_decoded,
    score,
    train_and_score,
)
from latent_mixup.generators import CompactGenerator

BUDGET = Budget(epochs=1, batch_size=32, deepfool_images=4)


@pytest.fixture(scope="module")
def codes():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = CompactGenerator(z_dim=8, decoder_widths=(16,), encoder_widths=(16,))
    latents = generator.sample_latents(200, torch.Generator().manual_seed(1))
    return Codes(generator, LatentBank(latents, torch.arange(200) % 4))


@pytest.fixture(scope="module")
def data(codes):
    latents, labels = codes.bank[:]
    images = codes.generator.decode(latents)
    return Data(images, labels, images[:50], labels[:50])


@pytest.fixture(scope="module")
def results(data, codes):
    """Each method's result, and how many steps it took."""
    found = {}
    for method in METHODS:
        steps = []
        before = torch.get_rng_state()
        result = train_and_score(method, data, codes, BUDGET, seed=3, on_step=lambda steps=steps: steps.append(1))
        assert torch.get_rng_state().equal(before)
        found[method] = result, len(steps)
    return found


def test_the_methods_of_the_demo():
    assert set(REAL_METHODS) == {"standard", "mixup", "manifold_mixup"}
    assert set(CODE_METHODS) == {"decoded", "latent_mixup", "latent_mixup_half_real", "robust"}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_the_same_steps_and_gives_the_same_scores(results, method):
    result, steps = results[method]
    assert steps == result["steps"] == 200 // 32
    assert (result["method"], result["seed"], result["test_images"]) == (method, 3, 50)
    for name in ("accuracy", "blurred_accuracy"):
        assert 0 <= result[name] <= 1
    assert result["deepfool_score"] > 0
    assert result["deepfool"]["n_images"] == 4
    assert result["deepfool"]["score"] == result["deepfool_score"]
    assert result["deepfool"]["units"] == "[-1, 1]"
    assert result.keys() == results["standard"][0].keys()


@pytest.mark.parametrize("method", METHODS)
def test_a_result_is_json(results, method):
    result, _ = results[method]
    assert json.loads(json.dumps(result, allow_nan=False)).keys() == result.keys()


@pytest.mark.parametrize("method", ["mixup", "latent_mixup_half_real"])
def test_the_same_seed_gives_the_same_result(data, codes, results, method):
    assert train_and_score(method, data, codes, BUDGET, seed=3) == results[method][0]
    assert train_and_score(method, data, codes, BUDGET, seed=4) != {**results[method][0], "seed": 4}


def test_the_methods_differ(results):
    assert len({result["deepfool_score"] for result, _ in results.values()}) == len(METHODS)


@pytest.mark.parametrize("method", CODE_METHODS)
def test_a_method_that_decodes_needs_codes(data, method):
    with pytest.raises(ValueError, match=r"this method decodes latent codes: pass codes=Codes\(generator, bank\)"):
        train_and_score(method, data, None, BUDGET, seed=0)


def test_a_method_that_does_not_decode_needs_none(data, results):
    assert train_and_score("standard", data, None, BUDGET, seed=3) == results["standard"][0]


def test_codes_need_a_label_each(codes):
    labels = codes.bank.labels.index_fill(0, torch.tensor([5]), -1)
    with pytest.raises(ValueError, match=r"1 of the bank's 200 rows have no label .*the first is row 5"):
        Codes(codes.generator, LatentBank(codes.bank[:][0], labels))


@pytest.mark.parametrize("method", CODE_METHODS)
def test_one_hot_rows_train_as_class_indices_do(data, codes, method):
    soft = Codes(codes.generator, LatentBank(codes.bank[:][0], F.one_hot(codes.bank.labels).float()))
    one, two = (train_and_score(method, data, used, BUDGET, seed=3) for used in (soft, codes))
    assert one["accuracy"] == two["accuracy"]
    assert one["deepfool_score"] == pytest.approx(two["deepfool_score"], rel=1e-3)


def view(data, codes):
    model = PaperCNN(4)
    return Run(data, codes, BUDGET, 0, model, paper_points(model))


def nearest(images, data):
    """The training image that each image is, which has to be one."""
    distance = (images[:, None] - data.train_images[None]).abs().amax((2, 3, 4))
    assert distance.min(1).values.max() < 1e-5
    return distance.argmin(1)


@pytest.mark.parametrize("prob", [0.0, 0.5, 1.0])
def test_decoded_images_come_with_their_own_labels(data, codes, prob):
    batches, _ = decoded(prob)(view(data, codes))
    for images, targets in batches:
        assert data.train_labels[nearest(images, data)].equal(targets.argmax(1))
        assert targets.sum(1).equal(torch.ones(32))
        assert targets.max(1).values.equal(torch.ones(32))


@pytest.mark.parametrize(("prob", "real"), [(0.0, 32), (0.5, 16), (1.0, 0)])
def test_the_share_of_mixes_in_a_batch(data, codes, prob, real):
    run = view(data, codes)
    for images, (own, labels) in zip((batch[0] for batch in decoded_mixes(prob)(run)[0]), run.real(), strict=True):
        same = (images == own).flatten(1).all(1)
        assert int(same.sum()) == real
        assert len(labels) == 32


@pytest.mark.parametrize("prob", [0.5, 1.0])
def test_the_controls_draw_what_latent_mixup_draws(data, codes, prob):
    """Same places, rows, partners and weights: the targets of mixed pixels are those of mixed codes."""
    run = view(data, codes)
    ways = [method(prob)(run)[0] for method in (decoded_mixes, pixel_mix_of_decoded, decoded)]
    for number, ((mixed, targets), (pixels, pixel_targets), (plain, _)) in enumerate(zip(*ways, strict=True)):
        torch.testing.assert_close(pixel_targets, targets)
        *_, draw = next(found for place, found in enumerate(run.draws(prob)) if place == number)
        own, other = (codes.generator.decode(codes.bank[rows][0]) for rows in (draw.rows, draw.partners))
        lam = draw.lam[:, None, None, None]
        torch.testing.assert_close(pixels[draw.slots], lam * own + (1 - lam) * other)
        torch.testing.assert_close(plain[draw.slots], own)
        rest = torch.ones(32, dtype=torch.bool).index_fill(0, draw.slots, False)
        assert mixed[rest].equal(pixels[rest])
        assert mixed[rest].equal(plain[rest])


def test_scoring_leaves_the_model_as_it_was(data):
    model = PaperCNN(4).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert score(model, data, 4) == score(model, data, 4)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_circumstances_name_what_a_result_depends_on(codes):
    found = json.loads(json.dumps(circumstances(codes, BUDGET), allow_nan=False))
    assert found["generator_digest"] == codes.generator.digest()
    assert found["bank_digest"] == codes.bank.digest()
    assert (found["bank_rows"], found["budget"]["epochs"]) == (200, 1)
    assert circumstances(None, BUDGET)["generator_digest"] is None
