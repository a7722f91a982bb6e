"""The verb `attention`: where a network looks, drawn over an image."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from autoformer_zoo.cli.command import option
from autoformer_zoo.cli.extract import LayoutOption
from autoformer_zoo.weights.whole_files import complete_file

if TYPE_CHECKING:
    from PIL import Image

DEFAULT_MODEL = "autoformer_nano"
MAX_SIZE = 4096  # pixels; colouring takes about 100 bytes for each of the square
GAP = 16  # pixels between the image and the overlay


@dataclass(frozen=True, slots=True)
class Attention:
    """Draw which parts of an image a network looks at."""

    image: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """An image file."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.png")]
    """The picture to write, the image beside it; an existing one is replaced."""
    model: Annotated[str | None, option("NAME", f"(default: {DEFAULT_MODEL})")] = None
    """Use this model of `list`. With --checkpoint, use its normalisation and class names."""
    checkpoint: Annotated[Path | None, option("FILE", "(default: the model's own)")] = None
    """Load weights from this file: a subnet, or a supernet to cut --model from."""
    layout: LayoutOption = None
    """Packing of q, k and v in a supernet's .pth file, which does not record it."""
    block: Annotated[int | None, option("N", "(default: all, multiplied)")] = None
    """Draw this block alone, counted from 0, or from the end by -1, -2, ..."""
    head: Annotated[int | None, option("N", "(default: the mean)")] = None
    """Draw this head of --block."""
    without_relative: bool = False
    """Leave the relative position out of the attention of the blocks that are drawn."""
    size: int = 448
    """Height of the picture in pixels, 4096 at most."""
    json: bool = False
    """Print one JSON object instead of text: the heat of each patch."""

    def run(self) -> Iterator[str]:
        """Write the picture, and yield what it shows."""
        from autoformer_zoo.classify.images import read_image
        from autoformer_zoo.classify.predict import predict
        from autoformer_zoo.classify.predictions import require_positive
        from autoformer_zoo.weights.files import check_output

        check_output(self.out, [Path(self.image)], [".png"])
        require_positive("--size", self.size)
        if self.size > MAX_SIZE:
            raise ValueError(f"--size is {self.size}; expected at most {MAX_SIZE} pixels")
        if self.head is not None and self.block is None:
            raise ValueError("--head is of one block: give --block with it")
        image = read_image(self.image)
        model = self._load().eval()
        heat = self._heat(model, image)
        best = predict(model, image, top_k=1)[0][0]
        _save(_picture(image, heat, model, self.size), self.out)
        if self.json:
            yield json.dumps({"out": str(self.out), "label": best.label, "heat": heat.tolist()})
            return
        what = "all blocks" if self.block is None else f"block {self.block}"
        what += "" if self.head is None else f", head {self.head}"
        yield f"{self.out}: {what}; {best.label} {100 * best.probability:.1f} %"

    def _load(self) -> Any:  # an AutoFormer
        from autoformer_zoo.cli.inputs import load_model
        from autoformer_zoo.models import factory

        if self.checkpoint is not None:
            return load_model(self.checkpoint, self.model, self.layout)
        if self.layout is not None:
            raise ValueError("--layout describes a file: give --checkpoint with it")
        return factory.create_model(self.model or DEFAULT_MODEL, pretrained=True)

    def _heat(self, model: Any, image: Image.Image) -> Any:  # (h, w)
        from autoformer_zoo.classify.attention import attention_maps, attention_rollout, patch_heat

        grid = model.patch_embed.grid_size
        relative = not self.without_relative
        if self.block is None:
            weights = attention_rollout(attention_maps(model, image, relative=relative))
        else:
            [weights] = attention_maps(model, image, [self.block], relative=relative)
            heads = weights.shape[1]
            if self.head is not None and not 0 <= self.head < heads:
                raise ValueError(f"--head is {self.head}; block {self.block} has {heads}")
            weights = weights.mean(1) if self.head is None else weights[:, self.head]
        return patch_heat(weights, grid)[0].numpy()


def _picture(image: Image.Image, heat: Any, model: Any, size: int) -> Image.Image:
    """Draw what the network sees of an image, and the overlay beside it."""
    from PIL import Image
    from timm.data import resolve_model_data_config

    from autoformer_zoo.classify.attention import draw_overlay
    from autoformer_zoo.classify.predict import input_size

    height, width = input_size(model)
    config = resolve_model_data_config(model)
    crop, mode = config["crop_pct"], config["crop_mode"]
    if crop > 1 or mode not in ("center", "squash"):
        raise ValueError(
            f"crop_mode {mode} with crop_pct {crop:g} pads images; expected center or squash, and "
            "at most 1, to draw over the image itself"
        )
    # The part that the crop keeps, in the pixels of the image itself.
    scale = crop * min(image.height / height, image.width / width)
    sides = (width * scale, height * scale)
    if mode == "squash":
        sides = (image.width * crop, image.height * crop)
    left, top = (image.width - sides[0]) / 2, (image.height - sides[1]) / 2
    target = (max(1, round(size * width / height)), size)
    box = (left, top, left + sides[0], top + sides[1])
    seen = image.resize(target, Image.Resampling.LANCZOS, box=box)
    picture = Image.new("RGB", (2 * target[0] + GAP, size), "white")
    picture.paste(seen, (0, 0))
    picture.paste(draw_overlay(seen, heat), (target[0] + GAP, 0))
    return picture


def _save(picture: Image.Image, out: Path) -> None:
    with complete_file(out) as partial:
        picture.save(partial, "PNG")
