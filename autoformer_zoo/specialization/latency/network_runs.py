"""Subnets to time: untrained networks of a space in a backend. Times do not depend on weights."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import Tensor, nn

from autoformer_zoo.models.factory import extract_subnet
from autoformer_zoo.network.frozen import freeze
from autoformer_zoo.network.supernet import Supernet
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.specialization.latency.profile import RunSetting, export_precision
from autoformer_zoo.specialization.latency.timing import Call, require_device
from autoformer_zoo.weights.checkpoint import SupernetWeights
from autoformer_zoo.weights.layouts import Architecture

if TYPE_CHECKING:
    import onnx

NUM_INPUTS = 4  # different images in turn, so that none is always in the cache
MOST_COMPILED = 64  # networks in one process
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

MakeCall = Callable[[SubnetConfig], Call]
"""Makes the network of a subnet, and returns a call of it on the next of a few batches."""


def prepare_runs(space: SearchSpace, setting: RunSetting) -> MakeCall:
    """Prepare what all subnets of a space share; for ONNX this exports a small graph.

    Args:
        space: whose subnets.
        setting: how they run; the caller sets torch's number of threads.

    Raises:
        ValueError: there is no such device.
    """
    require_device(setting.device)
    images = _images(space, setting)
    if setting.backend == "onnxruntime":
        from autoformer_zoo.specialization.latency.onnx_parts import OnnxParts

        parts = OnnxParts.export(space, is_int8=setting.precision == "int8")
        return lambda subnet: _onnx_call(parts.model_of(subnet), setting, images)
    supernet = Supernet(space)
    tensors = {name: p.detach() for name, p in supernet.weights.named_parameters()}
    weights = SupernetWeights(tensors, Architecture.of_space(space), "prefix")

    def make(subnet: SubnetConfig) -> Call:
        return _torch_call(extract_subnet(weights, subnet), setting, images)

    # Compiling takes up to a minute: each network is kept, whereas others are made for each round.
    return cache(make) if setting.backend == "compile" else make


def prepare_models(space: SearchSpace, setting: RunSetting) -> Callable[[str], Call]:
    """Prepare runs of untrained models of timm's registry; arguments as in `prepare_runs`.

    Returns:
        What makes a model by its name, and returns a call of it. Models are exported once.
    """
    require_device(setting.device)
    images = _images(space, setting)

    @cache
    def graph(name: str) -> Any:  # an onnx.ModelProto
        from autoformer_zoo.onnx.export import export_graph

        network = timm.create_model(name)
        return export_graph(network, export_precision(setting.precision))

    if setting.backend == "onnxruntime":
        return lambda name: _onnx_call(graph(name), setting, images)

    def make(name: str) -> Call:
        return _torch_call(timm.create_model(name).eval(), setting, images)

    return cache(make) if setting.backend == "compile" else make  # kept, as subnets are


def _images(space: SearchSpace, setting: RunSetting) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (setting.batch_size, 3, space.img_size, space.img_size)
    return [torch.randn(shape, generator=generator) for _ in range(NUM_INPUTS)]


def _torch_call(module: nn.Module, setting: RunSetting, images: Sequence[Tensor]) -> Call:
    dtype = DTYPES[setting.precision]
    network: Any = module.to(setting.device, dtype)
    if setting.backend == "compile":
        config: Any = torch._dynamo.config
        # Beyond its limit of one function's versions, torch would run the network uncompiled.
        config.recompile_limit = max(config.recompile_limit, MOST_COMPILED)
        network = torch.compile(network, dynamic=False)
    elif setting.device == "cpu" and isinstance(network, AutoFormer):
        network = freeze(network)
    inputs = itertools.cycle([image.to(setting.device, dtype) for image in images])

    @torch.inference_mode()
    def run() -> object:
        return network(next(inputs))

    return run


def _onnx_call(model: onnx.ModelProto, setting: RunSetting, images: Sequence[Tensor]) -> Call:
    session = open_session(model.SerializeToString(), setting.threads)
    name = session.get_inputs()[0].name
    inputs = itertools.cycle([image.numpy() for image in images])
    return lambda: session.run(None, {name: next(inputs)})


def open_session(model: bytes | str | os.PathLike[str], threads: int) -> Any:
    """Open an ONNX model, or the file of one, in onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Otherwise its threads spin after a call, and slow down whatever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
