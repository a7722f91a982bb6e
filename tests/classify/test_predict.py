"""predict.py and predictions.py: timm's numbers, whatever the image, the batch and the mode."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from autoformer_zoo.classify.predict import class_names, iter_predictions, make_transform, predict
from autoformer_zoo.models.factory import create_model
from autoformer_zoo.network.frozen import freeze
from autoformer_zoo.published import CIFAR10_CLASSES
from autoformer_zoo.space import SubnetConfig

SMALL = SubnetConfig(2, 128, (2, 1), (2.0, 1.5))


def nano(**kwargs: Any) -> Any:
    """A small network with random weights and the data config of autoformer_nano."""
    return create_model("autoformer_nano", subnet=SMALL, **kwargs).eval()


def images(number: int) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40 + 7 * i, 60, 3), np.uint8) for i in range(number)]


def assert_close(found: Any, expected: Any) -> None:
    """The same classes, with nearly the same probabilities."""
    for ours, theirs in zip(found, expected, strict=True):
        assert [a.label for a in ours] == [a.label for a in theirs]
        expected_numbers = pytest.approx([a.probability for a in theirs], abs=1e-5)
        assert [a.probability for a in ours] == expected_numbers


def test_probabilities_are_those_of_timms_recipe(tmp_path: Path) -> None:
    model = nano()
    path = tmp_path / "noise.png"
    Image.fromarray(images(1)[0]).save(path)
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    with torch.no_grad():
        logits = model(transform(Image.open(path).convert("RGB")).unsqueeze(0))
    expected = logits.softmax(1)[0].sort(descending=True)

    answers = predict(model, path, top_k=99)[0]  # all ten
    assert [a.index for a in answers] == expected.indices.tolist()
    assert [a.probability for a in answers] == expected.values.tolist()
    assert [a.label for a in answers] == [CIFAR10_CLASSES[i] for i in expected.indices]
    assert {a.image for a in answers} == {str(path)}


def test_another_family_of_timm_is_predicted_with_imagenet_names() -> None:
    model = timm.create_model("test_vit.r160_in1k", pretrained=False).eval()
    [[answer]] = predict(model, images(1)[0], top_k=1)
    assert answer.label == timm.data.ImageNetInfo().index_to_description(answer.index)


def test_batches_equal_one_by_one() -> None:
    model, given = nano(), images(5)
    batched = predict(model, given, batch_size=3)
    assert_close(batched, [predict(model, image)[0] for image in given])
    assert [answers[0].image for answers in batched] == [f"array {i}" for i in range(5)]
    assert predict(model, []) == []


def test_iterator_reads_one_batch_at_a_time() -> None:
    given, taken = iter(images(5)), []

    def watched() -> Any:
        for image in given:
            taken.append(1)
            yield image

    answers = iter_predictions(nano(), watched(), batch_size=2)
    assert len(taken) == 0
    next(answers)
    assert len(taken) == 2
    assert len(list(answers)) == 4


@pytest.mark.parametrize("training", [True, False])
def test_model_keeps_its_mode_and_its_weights_are_used(training: bool) -> None:
    model = nano(drop_rate=0.5, drop_path_rate=0.5).train(training)
    model.norm.eval()  # as users freeze single layers
    before = [module.training for module in model.modules()]
    first, second = predict(model, images(2)), predict(model, images(2))
    assert first == second  # no dropout while predicting
    assert [module.training for module in model.modules()] == before
    with torch.no_grad():
        model.head.weight.normal_()
    assert predict(model, images(2)) != first
    model(torch.randn(1, 3, 32, 32)).sum().backward()  # and it can still be trained
    assert model.head.weight.grad is not None


def test_model_in_training_mode_is_right_in_every_thread() -> None:
    model = nano(drop_rate=0.5, attn_drop_rate=0.5).train()
    given = images(30)
    expected = predict(model, given)

    def classify(i: int) -> Any:
        assert model.training
        return predict(model, given[i])[0]

    with ThreadPoolExecutor(4) as pool:
        assert_close(pool.map(classify, range(30)), expected)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: torch.compile(model, backend="eager"),
        nn.DataParallel,
        lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
        freeze,
    ],
    ids=["compiled", "parallel", "both", "frozen"],
)
def test_wrapped_model_is_predicted(wrap: Any) -> None:
    model = nano()
    expected = predict(model, images(2))
    wrapped = wrap(model)
    for training in (False,) if wrap is freeze else (False, True):
        assert_close(predict(wrapped.train(training), images(2)), expected)
        assert wrapped.training == training
    assert class_names(wrapped) == CIFAR10_CLASSES


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_model_of_another_precision_is_fed_its_own(dtype: torch.dtype) -> None:
    model = nano().to(dtype)
    [answers] = predict(model, images(1), top_k=10)
    assert sum(a.probability for a in answers) == pytest.approx(1, abs=1e-5)


def test_network_built_for_another_size_gets_that_size() -> None:
    image = Image.new("RGB", (100, 100))
    assert make_transform(nano(img_size=(48, 64)))(image).shape == (3, 48, 64)
    dynamic = nano(img_size=48, dynamic_img_size=True)
    assert make_transform(dynamic)(image).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"pretrained_cfg": None}, "a RegisteredAutoFormer, has no pretrained_cfg, which records"),
        ({"num_classes": 0}, r"no classifier \(num_classes=0\)"),
        ({"in_chans": 1}, "takes 1 channels; expected 3"),
        ({"top_k": 0}, "top_k is 0; expected a positive whole"),
        ({"batch_size": 2.5}, "batch_size is 2.5; expected a positive whole"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
        ({"device": "meta"}, "device 'meta' cannot be used: its tensors hold no numbers"),
        ({"device": "hpu"}, "device 'hpu' cannot be used"),
        ({"device": "privateuseone"}, "device 'privateuseone' cannot be used"),
    ],
)
def test_model_and_arguments_are_checked_at_once(change: Any, text: str) -> None:
    model, [(name, value)] = nano(), change.items()
    arguments = change if name in ("top_k", "batch_size", "device") else {}
    if not arguments:
        setattr(model, name, value)
    with pytest.raises(ValueError, match=text):
        iter_predictions(model, [], **arguments)


class Odd(nn.Module):
    """A model that returns what it is given."""

    def __init__(self, output: Any, **cfg: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.output, self.num_classes = output, cfg.get("num_classes", 10)
        self.pretrained_cfg = {"input_size": (3, 8, 8), "num_classes": 10, **cfg}

    def forward(self, x: Tensor) -> Any:
        return self.output


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (torch.zeros(1, 64, 10), r"returned \(1, 64, 10\) for 1 images; expected \(1, 10\)"),
        (torch.zeros(1, 7), r"returned \(1, 7\)"),
        ((torch.zeros(1, 10),), "returned a tuple; expected logits"),
        (torch.full((1, 10), float("nan")), "returned NaN or infinity, array 0 to array 0"),
    ],
    ids=["tokens", "classes", "tuple", "nan"],
)
def test_output_that_is_not_logits_is_refused(output: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        predict(Odd(output), images(1))


def test_unreadable_image_takes_no_other_along(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.png", "c.png"):
        Image.fromarray(images(1)[0]).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"nothing")
    answers = iter_predictions(nano(), tmp_path)
    assert next(answers)[0].image == str(tmp_path / "a.png")  # of the same batch as b.png
    with pytest.raises(ValueError, match=r"b\.png cannot be read as an image"):
        next(answers)
    skipped = list(iter_predictions(nano(), tmp_path, skip_unreadable=True))
    assert [Path(a[0].image).name for a in skipped] == ["a.png", "c.png"]
    assert "b.png cannot be read as an image" in caplog.text


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (nano(), CIFAR10_CLASSES),
        (nano(num_classes=7), [f"class {i}" for i in range(7)]),
        (nano(num_classes=1000), [f"class {i}" for i in range(1000)]),
        (
            Odd(None, num_classes=2, label_names=("n1", "n2"), label_descriptions={"n1": "cat"}),
            ("cat", "n2"),
        ),
    ],
    ids=["config", "another-head", "another-head-of-1000", "described-synsets"],
)
def test_class_names(model: Any, names: Any) -> None:
    assert class_names(model) == tuple(names)
    assert class_names(Odd(None, num_classes=1000))[285] == "Egyptian cat"
