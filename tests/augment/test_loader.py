import copy
import pickle
import threading
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from conftest import LabelledImages, LinearGenerator, SoftImages, one_hot_bank
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, Subset
from torchvision.transforms import v2

from latent_mixup.augment import LatentMixupCollate, LatentMixupLoader
from latent_mixup.augment import prefetch as ahead
from latent_mixup.generators import CompactGenerator
from latent_mixup.images import moments_of, normalized


@pytest.fixture
def wrap(toy_dataset, linear_generator, toy_bank):
    def make(loader=None, **settings):
        loader = DataLoader(toy_dataset, 8) if loader is None else loader
        known = {} if hasattr(loader, "dataset") else {"dataset": toy_dataset}
        return LatentMixupLoader(loader, linear_generator, toy_bank, **{"seed": 0, **known, **settings})

    return make


def pull(loader):
    batches = list(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([targets for _, targets in batches])


def decoders() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("latent-mixup")]


class Failing:
    """Three batches, then an error."""

    def __iter__(self):
        for _ in range(3):
            yield torch.rand(4, 1, 4, 4) * 2 - 1, torch.zeros(4, dtype=torch.int64)
        raise OSError("disk gone")


# ---- batches ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("prefetch", [0, 2])
def test_on_a_gpu_batches_are_those_of_the_cpu(wrap, prefetch):
    expected = pull(wrap(prob=0.5))
    found = pull(wrap(prob=0.5, device="cuda", prefetch=prefetch))
    assert all(part.is_cuda for part in found)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other)


@pytest.mark.parametrize("soft_samples", [False, True])
@pytest.mark.parametrize("soft_rows", [False, True])
@pytest.mark.parametrize("enabled", [False, True])
def test_one_hot_rows_do_what_class_indices_do(
    wrap, linear_generator, toy_dataset, toy_bank, soft_samples, soft_rows, enabled
):
    rows = SoftImages(toy_dataset.images, F.one_hot(toy_dataset.labels, 3).float())
    inner = DataLoader(rows if soft_samples else toy_dataset, 8)
    bank = one_hot_bank(toy_bank) if soft_rows else toy_bank
    for settings in ({"prob": 0.5, "label_smoothing": 0.1}, {"prob": 0.5, "target_format": "pair"}):
        loader, hard = LatentMixupLoader(inner, linear_generator, bank, seed=0, **settings), wrap(**settings)
        loader.mixup_enabled = hard.mixup_enabled = enabled
        for (images, targets), (same, expected) in zip(loader, hard, strict=True):
            assert torch.equal(images, same)
            if "target_format" in settings:
                expected = tuple(F.one_hot(y, 3).float() for y in expected[:2]) + expected[2:]
                targets = tuple(y if y.ndim == 2 else F.one_hot(y, 3).float() for y in targets[:2]) + targets[2:]
                assert all(map(torch.equal, targets, expected))
            else:
                assert torch.equal(targets, expected)


@pytest.mark.parametrize("prefetch", [1, 2, 5, 100])
def test_prefetch_changes_nothing(wrap, prefetch):
    expected, ahead = pull(wrap(prefetch=0, prob=0.6)), pull(wrap(prefetch=prefetch, prob=0.6))
    assert torch.equal(expected[0], ahead[0])
    assert torch.equal(expected[1], ahead[1])


def test_any_iterable_will_do(wrap, toy_dataset):
    batches = [
        (toy_dataset.images[:5], toy_dataset.labels[:5]),
        [toy_dataset.images[5:], toy_dataset.labels[5:]],
    ]
    loader = wrap(batches)
    assert len(loader) == 2
    assert [len(images) for images, _ in loader] == [5, 45]
    with pytest.raises(AttributeError, match="dataset"):
        _ = loader.dataset


class Batches(IterableDataset):
    """A stream that gives batches, as WebDataset's loader is one."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def test_a_stream_of_batches_is_a_loader(wrap, toy_dataset):
    batches = [(toy_dataset.images[:5], toy_dataset.labels[:5]), (toy_dataset.images[5:], toy_dataset.labels[5:])]
    expected, found = pull(wrap(batches)), pull(wrap(Batches(batches)))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_at_most_prefetch_batches_are_read_ahead(wrap, toy_dataset):
    read = []

    def batches():
        for i in range(20):
            read.append(i)
            yield toy_dataset.images[:4], toy_dataset.labels[:4]

    iterator = iter(wrap(batches(), prefetch=3))
    next(iterator)
    assert len(read) == 4
    iterator.close()
    read.clear()
    iterator = iter(wrap(batches(), prefetch=3, decode_batches=2))
    next(iterator)
    assert len(read) == 6  # the call that is asked for, and two ahead
    iterator.close()


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("decode_batches", [2, 5, 100])
def test_larger_decodes_change_nothing_but_rounding(wrap, prefetch, decode_batches):
    for settings in ({"prob": 0.6}, {"prob": 0.01}, {"prob": 1.0, "mode": "batch"}):
        expected = pull(wrap(prefetch=0, decode_batches=1, **settings))
        found = pull(wrap(prefetch=prefetch, decode_batches=decode_batches, **settings))
        torch.testing.assert_close(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        same = pull(wrap(prefetch=0, decode_batches=decode_batches, **settings))
        assert torch.equal(found[0], same[0])


def test_batches_of_a_call_keep_their_own_kind_of_labels(wrap, toy_dataset):
    hard, soft = toy_dataset.labels[:8], F.one_hot(toy_dataset.labels[8:16], 3).float()
    batches = [(toy_dataset.images[:8], hard), (toy_dataset.images[8:16], soft)]
    for decode_batches in (1, 2):
        first, second = (targets for _, targets in wrap(batches, decode_batches=decode_batches, target_format="pair"))
        assert first[0].shape == (8,)
        assert second[0].shape == (8, 3)


def test_the_wrapped_loaders_images_are_not_modified(wrap, toy_dataset):
    before = toy_dataset.images.clone()
    for prob in (0.5, 1.0):
        for images, _ in wrap([(toy_dataset.images, toy_dataset.labels)], prob=prob):
            images.zero_()
    assert torch.equal(toy_dataset.images, before)


def test_what_is_best_when_nobody_says(wrap, monkeypatch):
    for usable, threads, ranks, expected in ((8, 8, 1, 0), (8, 4, 1, 2), (8, 4, 2, 0), (8, 1, 4, 2)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, usable=usable: set(range(usable)), raising=False)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        assert wrap().prefetch == expected
    assert wrap().decode_batches == 1
    assert CompactGenerator().decode_batches == 8


# ---- decoding faster, and normalised ---------------------------------------------------------------


@pytest.mark.parametrize("moments", [(0.3, 0.6), ([0.3], [0.6]), (torch.tensor([0.3]), torch.tensor([0.6]))])
def test_normalize_is_what_v2_does(wrap, moments):
    v2_normalize = v2.Normalize([0.3], [0.6])
    normalised = pull(wrap(normalize=moments))[0]
    torch.testing.assert_close(normalised, v2_normalize((pull(wrap())[0] + 1) / 2))
    flipped = pull(wrap(normalize=moments, transform=lambda image: image.flip(-1)))[0]
    torch.testing.assert_close(flipped, normalised.flip(-1))


def test_normalize_by_channels():
    images, mean, std = torch.rand(2, 3, 4, 4) * 2 - 1, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    expected = v2.Normalize(mean, std)((images + 1) / 2)
    torch.testing.assert_close(normalized(images, moments_of((mean, std))), expected)
    with pytest.raises(ValueError, match=r"one a channel: got .* for 1 channels"):
        normalized(images[:, :1], moments_of((mean, std)))


@pytest.mark.parametrize(
    ("normalize", "message"),
    [
        (0.5, r"normalize needs to be \(mean, std\): got 0.5"),
        ((0.5, 0.0), "std above 0"),
        ((0.5, [0.5, 0.5]), "as many finite numbers"),
    ],
)
def test_bad_normalize(wrap, normalize, message):
    with pytest.raises(ValueError, match=message):
        wrap(normalize=normalize)


class ConvGenerator(LinearGenerator):
    """The linear generator, and a convolution that says what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 2, 3, padding=1, bias=False)
        torch.nn.init.constant_(self.conv.weight, 0.1)
        self.img_channels = 2
        self.freeze()

    def decode(self, latents):
        return self.conv(super().decode(latents))


@pytest.fixture
def conv_wrap(toy_dataset, toy_bank):
    two_channels = LabelledImages(ConvGenerator().decode(toy_bank[:][0]), toy_dataset.labels)

    def make(generator=None, **settings):
        return LatentMixupLoader(
            DataLoader(two_channels, 8), generator or ConvGenerator(), toy_bank, **{"seed": 0, **settings}
        )

    return make


@pytest.mark.filterwarnings("ignore::latent_mixup.images.RangeMismatchWarning")
def test_channels_last(conv_wrap):
    generator = ConvGenerator()
    expected = pull(conv_wrap())
    for images, _ in conv_wrap(generator, channels_last=True):
        assert images.is_contiguous(memory_format=torch.channels_last)
    assert generator.conv.weight.is_contiguous(memory_format=torch.channels_last)
    found = pull(conv_wrap(generator, channels_last=True))
    torch.testing.assert_close(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_autocast(wrap, dtype, prefetch):
    expected, found = pull(wrap()), pull(wrap(autocast=dtype, prefetch=prefetch))
    assert found[0].dtype == torch.float32
    assert not torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[0], expected[0], atol=0.05, rtol=0)
    assert torch.equal(found[1], expected[1])


def test_the_callers_autocast_does_not_reach_the_decoder(wrap):
    expected = pull(wrap(prefetch=0))[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(pull(wrap(prefetch=0))[0], expected)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_compile(wrap, prefetch, monkeypatch):
    compiled, compile_ = [], torch.compile

    def traced(function):
        compiled.append(function)
        return compile_(function, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    loader = wrap(compile=True, prefetch=prefetch, prob=0.6)
    torch.testing.assert_close(pull(loader)[0], pull(wrap(prob=0.6))[0])
    torch.compiler.reset()
    pull(loader)
    assert len(compiled) == 1
    assert torch.equal(pull(pickle.loads(pickle.dumps(loader)))[1], pull(loader)[1])  # noqa: S301


# ---- ahead, on an accelerator ----------------------------------------------------------------------


class Recorder:
    """Stands in for streams and events, and writes down what is asked of them."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def record_event(self):
        self.log.append(("record", self.name))
        return f"event {len(self.log)} of {self.name}"

    def wait_event(self, event):
        self.log.append(("wait", self.name, event))

    def __enter__(self):
        self.log.append(("enter", self.name))

    def __exit__(self, *_):
        self.log.append(("leave", self.name))


class Queued(torch.Tensor):
    """A tensor that writes down which streams use it."""

    log: ClassVar[list] = []

    def record_stream(self, stream):
        self.log.append(("use", stream.name, self.role))


def test_the_side_stream_waits_and_is_waited_for(monkeypatch):
    """The order that makes work on two streams safe: nobody reads, or frees, what the other one is still at."""
    log = Queued.log
    log.clear()
    streams = SimpleNamespace(
        Stream=lambda device: Recorder("side", log),
        stream=lambda stream: stream,
        current_stream=lambda device: Recorder("main", log),
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: streams)
    monkeypatch.setattr(ahead, "WITH_STREAMS", ("cpu",))

    def queued(role):
        tensor = torch.zeros(1).as_subclass(Queued)
        tensor.role = role
        return tensor

    def work(item):
        log.append("work")
        return [(queued("result"), (1, "text"))]

    results = ahead.run_ahead([[queued("item")]], work, 1, torch.device("cpu"))
    assert [found[0][1] for found in results] == [(1, "text")]
    assert log == [
        ("record", "main"),  # what the item is made of
        ("enter", "side"),
        ("wait", "side", "event 1 of main"),
        ("use", "side", "item"),
        "work",
        ("record", "side"),
        ("leave", "side"),
        ("wait", "main", "event 6 of side"),
        ("use", "main", "result"),
    ]


# ---- epochs ----------------------------------------------------------------------------------------


def test_epochs_count_up_by_themselves(wrap):
    loader = wrap()
    first, second = pull(loader)[1], pull(loader)[1]
    assert not torch.equal(first, second)
    told = wrap()
    told.set_epoch(1)
    assert torch.equal(pull(told)[1], second)
    with pytest.warns(UserWarning, match="epoch 1 is drawn a second time.*call set_epoch"):
        assert torch.equal(pull(told)[1], second)  # it stays the one named last
    pull(told)  # said once
    told.set_epoch(0)
    assert torch.equal(pull(told)[1], first)


class Told:
    """A part of a loader that is told the epoch."""

    epoch = None

    def set_epoch(self, epoch):
        self.epoch = epoch


class ToldImages(LabelledImages, Told):
    pass


class ToldLoader(DataLoader, Told):
    pass


def test_set_epoch_reaches_every_part_of_the_loader(wrap, toy_dataset, linear_generator, toy_bank):
    images = ToldImages(toy_dataset.images, toy_dataset.labels)
    for way in ("sampler", "batch_sampler"):
        sampler = DistributedSampler(images, num_replicas=2, rank=0)
        batches = {"batch_sampler": BatchSampler(sampler, 8, True)} if way == "batch_sampler" else {"sampler": sampler}
        collate = LatentMixupCollate(linear_generator, toy_bank, dataset=images, seed=0)
        inner = ToldLoader(Subset(images, range(50)), collate_fn=collate, **batches)
        wrap(wrap(inner)).set_epoch(4)
        assert [sampler.epoch, images.epoch, inner.epoch, collate._mixer.epoch] == [4] * 4
    wrap(DataLoader(toy_dataset, 8)).set_epoch(4)  # whose parts have no epoch


def test_an_iteration_keeps_its_epoch(wrap):
    loader = wrap(prefetch=0)
    loader.set_epoch(0)
    expected = pull(loader)[1]
    loader.set_epoch(0)
    targets = []
    for _, target in loader:
        loader.set_epoch(9)
        targets.append(target)
    assert torch.equal(torch.cat(targets), expected)


# ---- a DataLoader to those who ask -----------------------------------------------------------------


def test_attributes_are_the_wrapped_loaders(wrap, toy_dataset):
    inner = DataLoader(toy_dataset, 8, drop_last=True)
    loader = wrap(inner)
    assert len(loader) == 6
    assert loader.dataset is toy_dataset
    assert loader.sampler is inner.sampler
    assert loader.batch_size == 8
    assert loader.drop_last
    inner.state = "anything"
    with pytest.raises(AttributeError, match="has no attribute 'state'; its attribute 'loader' is the wrapped one"):
        _ = loader.state


def test_mixup_enabled(wrap, toy_dataset):
    loader = wrap(label_smoothing=0.3)
    assert loader.mixup_enabled
    loader.mixup_enabled = False
    images, targets = pull(loader)
    assert torch.equal(images, toy_dataset.images)
    torch.testing.assert_close(targets[0], torch.tensor([0.8, 0.1, 0.1]))


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])  # noqa: S301
def test_copies_draw_the_same(wrap, twin):
    loader = wrap()
    loader.mixup_enabled = True
    loader.set_epoch(2)
    assert torch.equal(pull(twin(loader))[1], pull(loader)[1])


def test_device(wrap, toy_dataset):
    loader = wrap([(toy_dataset.images, toy_dataset.labels)], device="cpu")
    assert loader.device == torch.device("cpu")
    assert wrap().device == torch.device("cpu")
    images, targets = next(iter(loader))
    assert images.device == targets.device == torch.device("cpu")


# ---- when things go wrong --------------------------------------------------------------------------


def test_early_break_leaves_no_thread(wrap):
    for images, _ in wrap(prefetch=2):
        assert len(decoders()) == 1
        assert len(images)
        break
    assert decoders() == []
    list(wrap())
    assert decoders() == []


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_in_the_loader_keeps_its_type(wrap, prefetch):
    with pytest.raises(OSError, match="disk gone"):
        list(wrap(Failing(), prefetch=prefetch))
    assert decoders() == []


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_while_decoding_keeps_its_type(wrap, prefetch):
    def broken(image):
        raise ZeroDivisionError("broken transform")

    with pytest.raises(ZeroDivisionError, match="broken transform"):
        list(wrap(transform=broken, prefetch=prefetch))
    assert decoders() == []


def test_bad_input(wrap, toy_dataset):
    with pytest.raises(ValueError, match="prefetch needs to be at least 0: got -1"):
        wrap(prefetch=-1)
    with pytest.raises(ValueError, match="decode_batches needs to be at least 1: got 0"):
        wrap(decode_batches=0)
    with pytest.raises(ValueError, match=r"autocast needs to be torch\.bfloat16, torch\.float16 or None: got torch"):
        wrap(autocast=torch.float32)
    with pytest.raises(ValueError, match="alpha needs to be above 0"):
        wrap(alpha=0)
    with pytest.raises(TypeError, match="an image needs to be a PIL image, an array or a tensor: got 1"):
        list(wrap([{"image": 1, "label": 2}]))
    images_only = [[toy_dataset.images]]
    with pytest.raises(TypeError, match="a batch needs images and labels: got a list of Tensor; no labels"):
        list(wrap(images_only))
