"""Models made and saved: create_model, extract_subnet, build_subnet, list_models, save_for_hf.

Thin on purpose: `timm.create_model` makes the same models once the package is imported. Added
here: files of every known format as `checkpoint_path`, and errors that suggest a fix.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
from timm.models import parse_model_name
from torch import nn

from autoformer_zoo.models.autoformer import build_static
from autoformer_zoo.network.vit import AutoFormer, whole_patches
from autoformer_zoo.published import GENERIC, SLICE_MARK, find_model
from autoformer_zoo.space import SubnetConfig

if TYPE_CHECKING:
    from autoformer_zoo.weights.checkpoint import Checkpoint, SubnetWeights, SupernetWeights

FAMILY = "autoformer"


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    checkpoint_path: str | os.PathLike[str] | Checkpoint | None = None,
    subnet: SubnetConfig | Mapping[str, Any] | None = None,
    slice: str | None = None,
    layout: str | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Make a model by name, as `timm.create_model` does.

    Args:
        name: one of `list_models()`, with a tag after a dot if wanted; or timm's "hf-hub:..." and
            "local-dir:...", whose subnets are cut out of the supernet that is published with them.
        pretrained: load the weights of the name's tag: from `AUTOFORMER_ZOO_WEIGHTS` (a file or
            folder), the cache, or the listed source.
        checkpoint_path: load this file instead, or what `open_checkpoint` returned: a supernet
            (official, PreNAS or canonical; the model's subnet is cut out of it) or one subnet
            (NNI's, canonical, or a state dict). All sizes have to match, except an `img_size` that
            is given. "autoformer_subnet" takes what is not given here from the file. The class
            names and preparation of images in the file's header come before the name's.
        subnet: another subnet than the name's, with weights inherited from the same supernet.
        slice: name of such a subnet in the catalogue, "15m"; "autoformer_small_slice_15m" as the
            name of the model is the same.
        layout: "packed_prefix" or "packed_interleaved", the packing of q, k and v in supernet files
            that do not record it: official ones, and PreNAS'. By default that of the name's listed
            file.
        **kwargs: timm's (img_size, num_classes, in_chans, features_only, ...) and those of
            `AutoFormer`.

    Returns:
        The model in training mode, as timm does.

    Raises:
        ValueError: an argument is refused.
        CheckpointError: the weights are missing, or the file is refused.
    """
    is_folder = bool(parse_model_name(name)[0])
    if slice is not None or (SLICE_MARK in name and not is_folder):
        name, subnet = _sliced(name, slice, subnet)
    if not is_folder:
        find_model(name)
    if checkpoint_path is not None:
        checkpoint_path = _open_given(checkpoint_path, layout, pretrained, kwargs)
    elif is_folder and pretrained and subnet is not None:
        from autoformer_zoo.weights.checkpoint import open_checkpoint
        from autoformer_zoo.weights.hub import SUPERNET, find_file

        file = find_file(name, SUPERNET, kwargs.pop("cache_dir", None))
        name, checkpoint_path = GENERIC, open_checkpoint(file, layout)
    elif layout is not None:
        raise ValueError(f"layout={layout!r} describes a file: give checkpoint_path= with it")
    # A dict, because timm keeps the arguments and may write them into a file.
    subnet = subnet.to_dict() if isinstance(subnet, SubnetConfig) else subnet
    with _naming_folder(name):
        model: nn.Module = timm.create_model(
            name, pretrained, subnet=subnet, checkpoint=checkpoint_path, **kwargs
        )
    # With features_only timm's wrapper keeps them, and with them all weights of a supernet.
    getattr(model, "_model_args", {}).pop("checkpoint", None)
    return model


def _open_given(
    checkpoint_path: str | os.PathLike[str] | Checkpoint,
    layout: str | None,
    pretrained: bool,
    kwargs: Mapping[str, Any],
) -> Checkpoint:
    """Open the file of `create_model`, unless another argument contradicts it."""
    if pretrained:
        raise ValueError("pretrained=True and checkpoint_path= both name weights: give one of them")
    if kwargs.get("features_only"):
        raise ValueError(
            "checkpoint_path= loads whole models: leave features_only=True out, or name the "
            "file by AUTOFORMER_ZOO_WEIGHTS with pretrained=True"
        )
    from autoformer_zoo.weights.checkpoint import Checkpoint
    from autoformer_zoo.weights.pretrained import open_weights

    if isinstance(checkpoint_path, Checkpoint):
        return checkpoint_path
    return open_weights(checkpoint_path, layout)


@contextmanager
def _naming_folder(name: str) -> Iterator[None]:
    """Report what timm stumbles over in a folder of the Hub, such as a truncated file."""
    if not parse_model_name(name)[0]:
        yield
        return
    from safetensors import SafetensorError

    from autoformer_zoo.weights.files import CheckpointError, refusal

    try:
        yield
    except CheckpointError:
        raise
    except (KeyError, TypeError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
        reason = f"holds no whole model of timm's: {type(error).__name__}: {error}"
        raise refusal(name, reason) from error


def _sliced(
    name: str, slice: str | None, subnet: SubnetConfig | Mapping[str, Any] | None
) -> tuple[str, SubnetConfig]:
    """Return the model, with its tag, and the subnet of a slice."""
    from autoformer_zoo.specialization.slices import find_slice

    if subnet is not None:
        given = name if slice is None else "slice="
        raise ValueError(f"{given} and subnet= both name a subnet: give one of them")
    model, dot, tag = name.partition(".")
    if slice is None:
        model, _, slice = model.partition(SLICE_MARK)
    return f"{model}{dot}{tag}", find_slice(model, slice).subnet


def list_models(
    filter: str | Iterable[str] = "",
    pretrained: bool = False,
    **kwargs: Any,
) -> list[str]:
    """List this package's models, as `timm.list_models` does.

    Args:
        filter: wildcards.
        pretrained: only those with weights, with their tags.
        **kwargs: further arguments of `timm.list_models`.
    """
    kwargs = {"module": FAMILY, **kwargs}
    names: list[str] = timm.list_models(filter, pretrained=pretrained, **kwargs)
    return names


def extract_subnet(
    supernet: SupernetWeights,
    subnet: SubnetConfig,
    img_size: int | tuple[int, int] | None = None,
) -> AutoFormer:
    """Make the static network of a subnet, with the weights that it inherits.

    Args:
        supernet: from `load_supernet`.
        subnet: anything that fits the supernet, whether or not it is in the trained space.
        img_size: input side, or (height, width), in pixels; by default the supernet's. Another
            size resamples the position embedding, see `AutoFormer.set_input_size`.

    Returns:
        The network in eval mode, in float32 on the CPU, with tensors of its own.

    Raises:
        ValueError: the subnet does not fit (the text names the layer, what it needs and what the
            supernet has), or `img_size` is not a multiple of the patch size.
    """
    return build_subnet(supernet.cut(subnet), img_size)


def build_subnet(
    weights: SubnetWeights, img_size: int | tuple[int, int] | None = None
) -> AutoFormer:
    """Make the static network of a subnet's own weights.

    Args:
        weights: from `Checkpoint.subnet` or `SupernetWeights.cut`.
        img_size: as in `extract_subnet`.

    Returns:
        The network as `extract_subnet` returns it.

    Raises:
        ValueError: `img_size` is not a multiple of the patch size.
    """
    size = weights.img_size if img_size is None else img_size
    return build_static(weights, img_size=whole_patches(size, weights.patch_size))


def save_for_hf(model: nn.Module, directory: str | os.PathLike[str], **kwargs: Any) -> None:
    """Save a model as a folder for the Hub, which timm and transformers open.

    As `timm.models.save_for_hf`, in safetensors, with two differences that transformers needs: the
    class names are at the root of config.json, and `num_classes` is there alone, not among the
    model's arguments too (transformers passes it itself, and fails if it is given twice). Import
    autoformer_zoo before the folder is opened, so that timm knows the architecture.

    Args:
        model: made by this package or by timm.
        directory: made if necessary.
        **kwargs: further arguments of timm's function.
    """
    cfg: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}  # type: ignore[assignment]
    names = cfg.get("label_names")
    model_config = {"label_names": list(names)} if names else {}
    model_config |= kwargs.pop("model_config", None) or {}
    kwargs = {"safe_serialization": True, **kwargs}
    timm.models.save_for_hf(model, str(directory), model_config=model_config, **kwargs)
    path = Path(directory, "config.json")
    config = json.loads(path.read_text(encoding="utf-8"))
    config.get("model_args", {}).pop("num_classes", None)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
