"""Any subnet of an AutoFormer supernet, cut out on the spot: its answer, costs and attention.

    python hub/space/app.py              # the supernet of autoformer_nano, which needs no network
    python hub/space/app.py FILE|NAME    # another one; or AUTOFORMER_ZOO_SUPERNET=FILE|NAME

Needs the extra `space` (gradio). All blocks of a subnet have the same heads and MLP ratio here.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageOps
from timm.data import resolve_model_data_config

import autoformer_zoo as az
from autoformer_zoo.classify.attention import attention_rollout, draw_overlay, patch_heat
from autoformer_zoo.classify.images import read_image
from autoformer_zoo.classify.predict import input_size
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.weights.checkpoint import Checkpoint
from autoformer_zoo.weights.pretrained import open_weights

if TYPE_CHECKING:
    import gradio

VARIABLE = "AUTOFORMER_ZOO_SUPERNET"
DEFAULT = "autoformer_nano"
KEPT = 8  # subnets in memory
OVERLAY = 448  # pixels, height
CSS = "#answer { min-height: 284px; }"  # so that nothing moves when an answer comes
WARM_UP, LEAST_RUNS, MOST_SECONDS = 3, 5, 0.5


@dataclass(frozen=True, slots=True)
class Answer:
    """What the app shows of an image and a subnet.

    Args:
        classes: probabilities of the best five by name.
        params: number of parameters.
        macs: multiply-adds of one image.
        latency_ms: median time of one call, on this machine.
        overlay: where the network looks, drawn over the part of the image that it sees.
    """

    classes: dict[str, float]
    params: int
    macs: int
    latency_ms: float
    overlay: Image.Image

    @property
    def facts(self) -> str:
        """The figures as a Markdown table."""
        return (
            "| parameters | multiply-adds | one image here |\n|---|---|---|\n"
            f"| {self.params:,} | {self.macs / 1e9:.3f} G | {self.latency_ms:.1f} ms |"
        )


def choices_of(supernet: Checkpoint) -> az.SearchSpace:
    """Return the sizes to choose from: the space that the supernet was trained for, if known.

    Raises:
        CheckpointError: the file holds one subnet.
    """
    net = supernet.supernet().net
    for space in az.SPACES.values():
        if space.supernet == net.sizes:
            return space
    most = net.sizes
    return az.SearchSpace(
        embed_dim=tuple(range(most.embed_dim, 63, -64)),
        num_heads=tuple(range(1, min(most.num_heads) + 1)),
        mlp_ratio=tuple(half / 2 for half in range(2, int(2 * min(most.mlp_ratio)) + 1)),
        depth=tuple(range(1, most.depth + 1)),
        supernet=most,
        img_size=net.img_size[0],
        patch_size=net.patch_size[0],
        num_classes=net.num_classes,
    )


class Cutter:
    """A supernet, and the subnets that were cut out of it lately.

    Args:
        source: a canonical file, or a model's name, as `load_supernet` takes them.

    Raises:
        CheckpointError: the weights are missing, refused, or one subnet's.
    """

    def __init__(self, source: str) -> None:
        self.supernet = open_weights(source)
        self.space = choices_of(self.supernet)
        self._cut: Callable[[az.SubnetConfig], AutoFormer] = lru_cache(KEPT)(self._create)

    def answer(
        self, image: str, depth: int, embed_dim: int, num_heads: int, mlp_ratio: float
    ) -> Answer:
        """Cut a subnet out, and run it on an image.

        Args:
            image: path of a file.
            depth: number of blocks.
            embed_dim: width.
            num_heads: of every block.
            mlp_ratio: of every block.

        Raises:
            ValueError: the image is refused, or the subnet does not fit the supernet.
        """
        opened = read_image(image)
        subnet = az.SubnetConfig.uniform(int(depth), int(embed_dim), int(num_heads), mlp_ratio)
        model = self._cut(subnet)
        sizes = (input_size(model), model.patch_embed.patch_size, model.num_classes)
        return Answer(
            {each.label: each.probability for each in az.predict(model, opened, top_k=5)[0]},
            az.count_params(subnet, *sizes),
            az.count_macs(subnet, *sizes),
            measure_ms(model),
            look(model, opened),
        )

    def _create(self, subnet: az.SubnetConfig) -> AutoFormer:
        model: Any = az.create_model(
            "autoformer_subnet", checkpoint_path=self.supernet, subnet=subnet
        )
        cut: AutoFormer = model.eval()
        return cut


def look(model: AutoFormer, image: Image.Image) -> Image.Image:
    """Draw the attention of all blocks over the part of an image that the crop keeps."""
    height, width = input_size(model)
    left_out = 1 - resolve_model_data_config(model)["crop_pct"]
    size = (round(OVERLAY * width / height), OVERLAY)
    seen = ImageOps.fit(image, size, Image.Resampling.LANCZOS, bleed=max(0.0, left_out / 2))
    weights = attention_rollout(az.attention_maps(model, image))
    return draw_overlay(seen, patch_heat(weights, model.patch_embed.grid_size)[0].numpy())


def measure_ms(model: AutoFormer) -> float:
    """Return the median time of one call with one image, in milliseconds."""
    images = torch.zeros(1, model.in_chans, *input_size(model))
    times: list[float] = []
    with torch.no_grad():
        for _ in range(WARM_UP):
            model(images)
        while len(times) < LEAST_RUNS or sum(times) < MOST_SECONDS:
            begin = time.perf_counter()
            model(images)
            times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times)


def make_app(cutter: Cutter) -> gradio.Blocks:
    """Lay out the app."""
    import gradio as gr

    space = cutter.space

    def slider(label: str, choices: tuple[float, ...], chosen: float) -> gr.Slider:
        step = min((b - a for a, b in itertools.pairwise(choices)), default=1)
        return gr.Slider(choices[0], choices[-1], min(chosen, choices[-1]), step=step, label=label)

    def run(image: str | None, *sizes: Any) -> tuple[Any, str, Any]:
        if image is None:
            return None, "", None
        try:
            found = cutter.answer(image, *sizes)
        except (ValueError, OSError) as error:
            raise gr.Error(f"{error}", print_exception=False) from None
        return found.classes, found.facts, found.overlay

    with gr.Blocks(title="AutoFormer, any subnet", analytics_enabled=False) as app:
        gr.Markdown(
            "# Any subnet of one supernet\n"
            "Choose sizes: the subnet is cut out of the supernet, with the weights that it "
            "inherits, and classifies your image."
        )
        with gr.Row():
            with gr.Column():
                image = gr.Image(
                    type="filepath", label="Image", height=300, sources=["upload", "webcam"]
                )
                # The file as it came: gradio would encode it again, and fail on a broken one.
                image.preprocess = lambda given: given and given.path
                most = space.supernet
                sizes = [
                    slider("Blocks", space.depth, most.depth),
                    slider("Width", space.embed_dim, most.embed_dim),
                    slider("Heads of each block", space.num_heads, max(most.num_heads)),
                    slider("MLP ratio of each block", space.mlp_ratio, max(most.mlp_ratio)),
                ]
            with gr.Column():
                classes = gr.Label(num_top_classes=5, label="Answer", elem_id="answer")
                facts = gr.Markdown(min_height=90)
                overlay = gr.Image(
                    label="Where it looks", height=300, interactive=False, buttons=["download"]
                )
        gr.on(
            [image.change, *(each.change for each in sizes)],
            run,
            [image, *sizes],
            [classes, facts, overlay],
            trigger_mode="always_last",
            show_progress="minimal",
        )
    return app


def launch(source: str, **options: Any) -> Any:
    """Open a supernet and serve the app; arguments of gradio's `launch` may be added.

    Raises:
        CheckpointError: the weights are missing or refused.
        ImportError: gradio is not installed.
    """
    # Before gradio is imported: it reports home otherwise.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    # Fonts of the visitor's system; gradio's own come from another server.
    fonts = ["system-ui", "sans-serif"]
    theme = gr.themes.Default(primary_hue="blue", font=fonts, font_mono=fonts)
    app = make_app(Cutter(source))
    return app.launch(theme=theme, css=CSS, ssr_mode=False, footer_links=[], **options)


if __name__ == "__main__":
    try:
        launch(sys.argv[1] if len(sys.argv) > 1 else os.environ.get(VARIABLE, DEFAULT))
    except (az.CheckpointError, ImportError) as error:
        sys.exit(f"app.py: {error}")
