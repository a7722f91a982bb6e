"""predict.py and labels.py: timm's numbers, whatever the image, the batch and the mode."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from autoformer_zoo.classify.predict import (
    Prediction,
    class_names,
    iter_predictions,
    make_transform,
    predict,
)
from autoformer_zoo.factory import create_model
from autoformer_zoo.published import CIFAR10_CLASSES
from autoformer_zoo.space import SubnetConfig

SMALL = SubnetConfig(2, 128, (2, 1), (2.0, 1.5))


def nano(**kwargs: Any) -> Any:
    """A small network with random weights and the data config of autoformer_nano."""
    return create_model("autoformer_nano", subnet=SMALL, **kwargs).eval()


def images(number: int) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (40 + 7 * i, 60, 3), np.uint8) for i in range(number)]


def test_probabilities_are_those_of_timms_recipe(tmp_path: Path) -> None:
    model = nano()
    path = tmp_path / "noise.png"
    Image.fromarray(images(1)[0]).save(path)

    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    with torch.no_grad():
        logits = model(transform(Image.open(path).convert("RGB")).unsqueeze(0))
    expected = logits.softmax(1)[0].sort(descending=True)

    answers = predict(model, path, top_k=10)[0]
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
    single = [predict(model, image)[0] for image in given]
    for left, right in zip(batched, single, strict=True):
        assert [a.label for a in left] == [a.label for a in right]
        np.testing.assert_allclose(
            [a.probability for a in left], [a.probability for a in right], atol=1e-5
        )
    assert [answers[0].image for answers in batched] == [f"array {i}" for i in range(5)]


def test_folder_is_predicted_in_sorted_order(tmp_path: Path) -> None:
    for name, array in zip(("b.png", "a.png", "c.jpg"), images(3), strict=True):
        Image.fromarray(array).save(tmp_path / name)
    answers = predict(nano(), tmp_path, batch_size=2)
    assert [Path(a[0].image).name for a in answers] == ["a.png", "b.png", "c.jpg"]


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


def test_no_images_give_no_answers() -> None:
    assert predict(nano(), []) == []


@pytest.mark.parametrize("training", [True, False])
def test_model_keeps_its_mode(training: bool) -> None:
    model = nano(drop_rate=0.5, drop_path_rate=0.5).train(training)
    model.norm.eval()  # as users freeze single layers
    before = [module.training for module in model.modules()]
    first, second = predict(model, images(2)), predict(model, images(2))
    assert first == second  # no dropout while predicting
    assert [module.training for module in model.modules()] == before


def test_model_keeps_its_mode_when_it_fails() -> None:
    model = nano().train()
    model.head = nn.Linear(3, 10)
    with pytest.raises(RuntimeError):
        predict(model, images(1))
    assert all(module.training for module in model.modules())


def test_model_can_be_trained_after_predicting() -> None:
    model = nano()
    predict(model, images(1))
    model(torch.randn(1, 3, 32, 32)).sum().backward()
    assert model.head.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_model_of_another_precision_is_fed_its_own(dtype: torch.dtype) -> None:
    model = nano().to(dtype)
    [answers] = predict(model, images(1), top_k=10)
    assert sum(a.probability for a in answers) == pytest.approx(1, abs=1e-5)


def test_top_k_stops_at_the_number_of_classes() -> None:
    assert len(predict(nano(), images(1), top_k=99)[0]) == 10
    assert len(predict(nano(num_classes=2), images(1))[0]) == 2


def test_network_built_for_another_size_gets_that_size() -> None:
    model = nano(img_size=(48, 64))
    shape = make_transform(model)(Image.new("RGB", (100, 100))).shape
    assert shape == (3, 48, 64)
    assert len(predict(model, images(1))[0]) == 5


def test_dynamic_network_gets_the_size_of_its_config() -> None:
    model = nano(img_size=48, dynamic_img_size=True)
    assert make_transform(model)(Image.new("RGB", (100, 100))).shape == (3, 32, 32)


@pytest.mark.parametrize("argument", ["top_k", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_number_that_is_not_positive_is_refused_at_once(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{argument} is {value}; expected a positive whole"):
        iter_predictions(nano(), [], **{argument: value})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"pretrained_cfg": None}, "a RegisteredAutoFormer, has no pretrained_cfg, which says"),
        ({"num_classes": 0}, r"no classifier \(num_classes=0\)"),
        ({"in_chans": 1}, "takes 1 channels; expected 3"),
    ],
)
def test_model_that_is_no_image_classifier_is_refused(change: Any, text: str) -> None:
    model = nano()
    for name, value in change.items():
        setattr(model, name, value)
    with pytest.raises(ValueError, match=text):
        iter_predictions(model, [])


class Odd(nn.Module):
    """A model that returns what it is told to."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.output, self.num_classes = output, 10
        self.pretrained_cfg = {"input_size": (3, 8, 8), "num_classes": 10}

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
def test_output_that_is_no_logits_is_refused(output: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        predict(Odd(output), images(1))


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used"):
        predict(nano(), images(1), device=device)


def test_unreadable_image_stops_or_is_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.png", "c.png"):
        Image.fromarray(images(1)[0]).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"b\.png is not a image"):
        predict(nano(), tmp_path)
    answers = list(iter_predictions(nano(), tmp_path, skip_unreadable=True))
    assert [Path(a[0].image).name for a in answers] == ["a.png", "c.png"]
    assert "skipped" in caplog.text
    assert "b.png is not a image" in caplog.text


def test_prediction_cannot_be_changed() -> None:
    prediction = Prediction("a.png", "cat", 3, 0.5)
    with pytest.raises(FrozenInstanceError):
        prediction.label = "dog"  # type: ignore[misc]


def test_names_come_from_the_config() -> None:
    assert class_names(nano()) == CIFAR10_CLASSES


def test_synsets_are_described_where_the_config_does() -> None:
    model = Odd(None)
    model.num_classes = 2
    model.pretrained_cfg = {"label_names": ("n1", "n2"), "label_descriptions": {"n1": "cat"}}
    assert class_names(model) == ("cat", "n2")


def test_imagenet_names_need_1000_classes() -> None:
    model = Odd(None)
    model.num_classes = model.pretrained_cfg["num_classes"] = 1000
    assert class_names(model)[285] == "Egyptian cat"


@pytest.mark.parametrize("classes", [7, 1000])
def test_another_head_than_the_configs_gets_numbers(classes: int) -> None:
    assert class_names(nano(num_classes=classes)) == tuple(f"class {i}" for i in range(classes))
