import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latent_mixup.functional import mix_latents, mix_targets, mixup_criterion, soft_targets
from latent_mixup.interpolation import slerp

B, C = 6, 4
Y_A, Y_B = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([3, 1, 0, 2, 2, 0])
LAM = torch.tensor([0.0, 0.2, 0.5, 0.7, 0.9, 1.0])
LOGITS = torch.randn(B, C, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.tensor([1.0, 2.0, 0.5, 3.0])
SOFT_A, SOFT_B = torch.randn(2, B, C, generator=torch.Generator().manual_seed(1)).softmax(2)


def returns_per_sample(pred, y):
    return F.cross_entropy(pred, y, reduction="none")


def returns_one_number(pred, y):
    return F.cross_entropy(pred, y)


# ---- codes -----------------------------------------------------------------------------------------


def test_mix_latents_moves_each_code_towards_its_partner():
    latents = torch.tensor([[0.0], [10.0], [20.0]])
    mixed = mix_latents(latents, torch.tensor([1, 2, 0]), torch.tensor([1.0, 0.5, 0.25]))
    assert torch.equal(mixed, torch.tensor([[0.0], [15.0], [5.0]]))


def test_partners_may_be_rows_or_codes():
    latents, lam, partner = torch.randn(6, 2, 4), LAM, torch.tensor([5, 0, 3, 3, 1, 2])
    expected = mix_latents(latents, partner, lam)
    assert torch.equal(mix_latents(latents, latents[partner], lam), expected)
    with pytest.raises(ValueError, match=r"two codes need one shape to be mixed: got \[6, 2, 4\] and \[5, 2, 4\]"):
        mix_latents(latents, latents[:5], lam)


def test_mix_latents_takes_a_path():
    latents = torch.eye(2)
    mixed = mix_latents(latents, torch.tensor([1, 0]), torch.tensor([0.5, 0.5]), path=slerp)
    torch.testing.assert_close(mixed.norm(dim=1), torch.ones(2))


def test_mix_latents_errors():
    latents = torch.zeros(8, 2)
    with pytest.raises(ValueError, match=r"partner needs one row per code: got \[7\] for 8 codes"):
        mix_latents(latents, torch.zeros(7, dtype=torch.int64), torch.ones(8))
    with pytest.raises(ValueError, match=r"lam needs one weight per code: got \[7\] for 8 codes"):
        mix_latents(latents, torch.zeros(8, dtype=torch.int64), torch.ones(7))


# ---- targets ---------------------------------------------------------------------------------------


def test_mix_targets_by_hand():
    targets = mix_targets(torch.tensor([0, 1]), torch.tensor([2, 1]), torch.tensor([0.25, 0.6]), 3)
    torch.testing.assert_close(targets, torch.tensor([[0.25, 0.0, 0.75], [0.0, 1.0, 0.0]]))
    assert targets.dtype == torch.float32


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_rows_sum_to_one_and_symmetry(smoothing):
    targets = mix_targets(Y_A, Y_B, LAM, C, smoothing)
    torch.testing.assert_close(targets.sum(1), torch.ones(B))
    torch.testing.assert_close(targets, mix_targets(Y_B, Y_A, 1 - LAM, C, smoothing))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_soft_labels_are_mixed_as_well(dtype):
    soft = F.one_hot(Y_A, C).to(dtype)
    torch.testing.assert_close(mix_targets(soft, Y_B, LAM, C), mix_targets(Y_A, Y_B, LAM, C))
    torch.testing.assert_close(mix_targets(Y_B, soft, LAM, C, 0.1), mix_targets(Y_B, Y_A, LAM, C, 0.1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_hot_rows_are_mixed_exactly_as_class_indices(smoothing):
    a, b = F.one_hot(Y_A, C).float(), F.one_hot(Y_B, C).float()
    expected = mix_targets(Y_A, Y_B, LAM, C, smoothing)
    for one, two in ((a, b), (a, Y_B), (Y_A, b)):
        assert torch.equal(mix_targets(one, two, LAM, C, smoothing), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_soft_rows_by_hand(smoothing):
    mixed = mix_targets(SOFT_A, SOFT_B, LAM, C, smoothing)
    for row, a, b, lam in zip(mixed, SOFT_A.tolist(), SOFT_B.tolist(), LAM.tolist(), strict=True):
        by_hand = [lam * own + (1 - lam) * other for own, other in zip(a, b, strict=True)]
        torch.testing.assert_close(row, torch.tensor([(1 - smoothing) * share + smoothing / C for share in by_hand]))
    torch.testing.assert_close(mixed, mix_targets(SOFT_B, SOFT_A, 1 - LAM, C, smoothing))


def test_soft_rows_alone_come_through_as_they_are():
    assert torch.equal(soft_targets(SOFT_A, C), SOFT_A)
    assert torch.equal(mix_targets(SOFT_A, SOFT_B, torch.ones(B), C), SOFT_A)
    assert torch.equal(mix_targets(SOFT_A, SOFT_B, torch.zeros(B), C), SOFT_B)


def test_smoothing_is_that_of_cross_entropy():
    targets = mix_targets(Y_A, Y_B, LAM, C, 0.2)
    expected = F.cross_entropy(LOGITS, mix_targets(Y_A, Y_B, LAM, C), label_smoothing=0.2)
    torch.testing.assert_close(F.cross_entropy(LOGITS, targets), expected)


def test_soft_targets_leave_the_input_alone():
    soft = torch.full((2, 2), 0.5)
    soft_targets(soft, 2).zero_()
    assert torch.equal(soft, torch.full((2, 2), 0.5))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 4]), r"label 4 is outside num_classes=4"),
        (torch.tensor([-1, 0]), r"label -1 is outside num_classes=4: it says that there is no label"),
        (torch.tensor([-2, 0]), r"a class needs an integer from 0, or -1 for none: got -2"),
        (torch.tensor([[0, 1]]), r"integers \[B\] or soft labels \[B, 4\]: got torch.int64 \[1, 2\]"),
        (torch.rand(2, 5), r"shape \[B, 4\]: got torch.float32 \[2, 5\]"),
        (torch.rand(2), r"shape \[B, 4\]: got torch.float32 \[2\]"),
        (torch.ones(2, 4), r"numbers from 0 that sum to 1 in each row: row 0 sums to 4"),
        (torch.tensor([[1.0, 0, 0, 0], [1.5, -0.5, 0, 0]]), r"row 1 has -0.5"),
        (torch.tensor([[1.0, 0, 0, 0], [torch.nan, 0, 0, 1]]), r"row 1 has nan"),
    ],
)
def test_target_errors(labels, message):
    with pytest.raises(ValueError, match=message):
        soft_targets(labels, 4)


# ---- losses ----------------------------------------------------------------------------------------

CRITERIA = {
    "module": nn.CrossEntropyLoss(),
    "sum": nn.CrossEntropyLoss(reduction="sum"),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.1),
    "weighted": nn.CrossEntropyLoss(weight=WEIGHT),
    "weighted and smoothed": nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1),
    "weighted and ignoring": nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=0),
    "function": F.cross_entropy,
    "partial": functools.partial(F.cross_entropy, label_smoothing=0.1),
    "weighted partial": functools.partial(F.cross_entropy, weight=WEIGHT),
    "margin": nn.MultiMarginLoss(weight=WEIGHT),
    "none": nn.CrossEntropyLoss(reduction="none"),
    "per sample": returns_per_sample,
}


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_equal_weights_give_the_scalar_formula(name, weight):
    criterion = CRITERIA[name]
    expected = weight * criterion(LOGITS, Y_A) + (1 - weight) * criterion(LOGITS, Y_B)
    torch.testing.assert_close(mixup_criterion(criterion, LOGITS, Y_A, Y_B, weight), expected)
    torch.testing.assert_close(mixup_criterion(criterion, LOGITS, Y_A, Y_B, torch.tensor(weight)), expected)
    vector = torch.full((B,), weight)
    torch.testing.assert_close(mixup_criterion(criterion, LOGITS, Y_A, Y_B, vector), expected)


@pytest.mark.parametrize(
    "criterion", [F.cross_entropy, nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)]
)
def test_own_weights_equal_soft_targets(criterion):
    logits = LOGITS.clone().requires_grad_(True)
    pair = mixup_criterion(criterion, logits, Y_A, Y_B, LAM)
    soft = criterion(logits, mix_targets(Y_A, Y_B, LAM, C))
    torch.testing.assert_close(pair, soft)
    of_pair, of_soft = (torch.autograd.grad(loss, logits)[0] for loss in (pair, soft))
    torch.testing.assert_close(of_pair, of_soft)


@pytest.mark.parametrize("criterion", [F.cross_entropy, nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1)])
def test_a_pair_of_soft_rows_is_the_loss_of_their_mix(criterion):
    pair = mixup_criterion(criterion, LOGITS, SOFT_A, SOFT_B, LAM)
    torch.testing.assert_close(pair, criterion(LOGITS, mix_targets(SOFT_A, SOFT_B, LAM, C)))


@pytest.mark.parametrize("criterion", [F.cross_entropy, nn.CrossEntropyLoss(label_smoothing=0.1)])
def test_a_pair_of_one_hot_rows_is_a_pair_of_class_indices(criterion):
    rows = mixup_criterion(criterion, LOGITS, F.one_hot(Y_A, C).float(), F.one_hot(Y_B, C).float(), LAM)
    torch.testing.assert_close(rows, mixup_criterion(criterion, LOGITS, Y_A, Y_B, LAM))


@pytest.mark.parametrize("reduction", ["batchmean", "sum", "none"])
def test_every_reduction_of_a_divergence_is_the_scalar_formula(reduction):
    loss, pred = nn.KLDivLoss(reduction=reduction), LOGITS.log_softmax(1)
    for weight in (0.0, 0.3, 1.0):
        expected = weight * loss(pred, SOFT_A) + (1 - weight) * loss(pred, SOFT_B)
        torch.testing.assert_close(mixup_criterion(loss, pred, SOFT_A, SOFT_B, torch.full((B,), weight)), expected)


def test_a_reduction_that_is_not_known_is_refused():
    class Median(nn.Module):
        reduction = "median"

        def forward(self, pred, y):
            return F.cross_entropy(pred, y, reduction="none").median()

    with pytest.raises(ValueError, match="how Median reduces by 'median' is not known: expected mean, sum"):
        mixup_criterion(Median(), LOGITS, Y_A, Y_B, LAM)


def test_gradient_is_numerically_right():
    logits = LOGITS.double().requires_grad_(True)
    criterion = nn.CrossEntropyLoss(weight=WEIGHT.double())
    assert torch.autograd.gradcheck(lambda pred: mixup_criterion(criterion, pred, Y_A, Y_B, LAM), logits)


def test_a_loss_with_several_numbers_a_sample():
    bce = nn.BCEWithLogitsLoss()
    own, other = F.one_hot(Y_A, C).float(), F.one_hot(Y_B, C).float()
    mixed = mix_targets(Y_A, Y_B, LAM, C)
    torch.testing.assert_close(mixup_criterion(bce, LOGITS, own, other, LAM), bce(LOGITS, mixed))


def test_the_caller_keeps_its_module():
    criterion = nn.CrossEntropyLoss(weight=WEIGHT)
    state = {name: id(value) for name, value in vars(criterion).items()}
    mixup_criterion(criterion, LOGITS, Y_A, Y_B, LAM)
    assert criterion.reduction == "mean"
    assert {name: id(value) for name, value in vars(criterion).items()} == state


def test_timm_losses():
    from timm import loss as timm_loss

    bce = timm_loss.BinaryCrossEntropy(smoothing=0.1)
    losses = [mixup_criterion(bce, LOGITS[[i]], Y_A[[i]], Y_B[[i]], float(LAM[i])) for i in range(B)]
    torch.testing.assert_close(mixup_criterion(bce, LOGITS, Y_A, Y_B, LAM), torch.stack(losses).mean())
    with pytest.raises(ValueError, match="LabelSmoothingCrossEntropy returns a loss of shape"):
        mixup_criterion(timm_loss.LabelSmoothingCrossEntropy(), LOGITS, Y_A, Y_B, LAM)


class WeightedHouseLoss(nn.Module):
    reduction = "mean"
    weight = WEIGHT

    def forward(self, pred, y):
        return F.cross_entropy(pred, y, self.weight, reduction=self.reduction)


def test_criterion_errors():
    with pytest.raises(ValueError, match=r"returns_one_number returns a loss of shape \[\] for 6 samples.*reduction"):
        mixup_criterion(returns_one_number, LOGITS, Y_A, Y_B, LAM)
    with pytest.raises(ValueError, match="how WeightedHouseLoss averages its class weights is not known"):
        mixup_criterion(WeightedHouseLoss(), LOGITS, Y_A, Y_B, LAM)
    with pytest.raises(ValueError, match=r"one per sample: got \[5\] for 6"):
        mixup_criterion(F.cross_entropy, LOGITS, Y_A, Y_B, LAM[:5])
    one_number = mixup_criterion(returns_one_number, LOGITS, Y_A, Y_B, 0.5)
    assert one_number.shape == ()


def test_a_batchmean_divides_by_the_batch():
    """``batchmean`` is the sum over everything, divided by the samples alone, whatever the weights are."""
    draw = torch.Generator().manual_seed(0)
    pred = torch.randn(4, 5, generator=draw).log_softmax(1)
    own, other = (torch.rand(4, 5, generator=draw).softmax(1) for _ in range(2))
    lam = torch.tensor([0.0, 0.25, 0.5, 1.0])
    found = mixup_criterion(nn.KLDivLoss(reduction="batchmean"), pred, own, other, lam)
    losses = [
        lam[:, None] * F.kl_div(pred, own, reduction="none"),
        (1 - lam[:, None]) * F.kl_div(pred, other, reduction="none"),
    ]
    torch.testing.assert_close(found, sum(losses).sum() / 4)
