"""The folders in the hands of transformers, peft and optimum, where these are installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import autoformer_zoo as az
from hub.folder import main as make_folder

CAT = Path(__file__).parents[2] / "docs" / "cat.jpg"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # theirs
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folder") / "nano"
    assert make_folder(["autoformer_nano", str(path)]) == 0
    return path


def images() -> torch.Tensor:
    return torch.linspace(-2, 2, 3 * 32 * 32).reshape(1, 3, 32, 32)


def expected() -> torch.Tensor:
    with torch.no_grad():
        return az.create_model("autoformer_nano", pretrained=True).eval()(images())


def test_transformers_gives_the_same_logits_and_names(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torchvision")
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        assert (model(pixel_values=images()).logits - expected()).abs().max() < 1e-5
    found = transformers.pipeline("image-classification", model=str(folder))(str(CAT), top_k=3)
    nano = az.create_model("autoformer_nano", pretrained=True)
    for theirs, ours in zip(found, az.predict(nano, CAT, top_k=3)[0], strict=True):
        assert theirs["label"] == ours.label
        assert theirs["score"] == pytest.approx(ours.probability, abs=1e-4)


class _Noise(torch.utils.data.Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": torch.randn(3, 32, 32), "labels": index}


def test_trainer_takes_steps(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = transformers.AutoModelForImageClassification.from_pretrained(folder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, use_cpu=True, report_to=[], save_strategy="no",
        per_device_train_batch_size=4, remove_unused_columns=False,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=_Noise())
    assert trainer.train().global_step == 2
    assert any(not torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_lora_trains_and_merges() -> None:
    peft = pytest.importorskip("peft")
    model = az.create_model("autoformer_nano", pretrained=True)
    config = peft.LoraConfig(r=4, target_modules=["qkv", "proj"])
    adapted = peft.get_peft_model(model, config)
    weights = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(weights, 0.1)
    for _ in range(2):
        loss = torch.nn.functional.cross_entropy(adapted(images()), torch.tensor([5]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.eval()
    with torch.no_grad():
        trained = adapted(images())
        merged = adapted.merge_and_unload().eval()(images())
    assert (merged - trained).abs().max() < 1e-5
    assert (trained - expected()).abs().max() > 1e-3


def test_optimum_runs_the_folder_for_the_web(tmp_path: Path) -> None:
    optimum = pytest.importorskip("optimum.onnxruntime")
    from autoformer_zoo.onnx.web import export_web

    export_web(az.create_model("autoformer_nano", pretrained=True), tmp_path)
    model = optimum.ORTModelForImageClassification.from_pretrained(tmp_path)
    found = model(pixel_values=images()).logits
    assert (found - expected()).abs().max() < 1e-4
    assert model.config.id2label[3] == "cat"
