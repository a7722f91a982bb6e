"""ONNX graphs of any subnet of a space, from one exported network of two blocks.

An export takes some ten seconds, too long for every subnet that is timed. All blocks of an exported
graph have the same nodes and differ in sizes only, so one small network with sizes that occur
nowhere else is exported; its second block is repeated, and its sizes are replaced. The weights are
the template's, repeated: these graphs are for timing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.onnx.export import export_graph
from autoformer_zoo.space import HEAD_DIM, SearchSpace, SubnetConfig

if TYPE_CHECKING:
    import onnx

Sizes = Mapping[int, int]  # a size of the template -> that of the subnet
HEADS = (5, 7, 11, 13)  # of the template's blocks: the first that is no other size of the graph


@dataclass(frozen=True)
class OnnxParts:
    """The graph of a network of two blocks, in parts.

    Args:
        model: the whole graph.
        bounds: the nodes at which the first block, the second and the rest begin.
        template: the network.
    """

    model: onnx.ModelProto
    bounds: tuple[int, int, int]
    template: SubnetConfig

    @classmethod
    def export(cls, space: SearchSpace, is_int8: bool = False) -> OnnxParts:
        """Export the template of a space.

        Args:
            space: its image size, patch size and classes.
            is_int8: quantize as "int8-dynamic" does.
        """
        subnet = _template(space)
        network = AutoFormer(
            subnet, space.img_size, space.patch_size, num_classes=space.num_classes
        )
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():  # the exporter would leave out parameters that are 0
            for parameter in network.parameters():
                parameter.normal_(std=0.1, generator=generator)
        model = export_graph(network, "int8-dynamic" if is_int8 else "fp32")
        norms = [i for i, n in enumerate(model.graph.node) if n.op_type == "LayerNormalization"]
        assert len(norms) == 2 * subnet.depth + 1
        return cls(model, (norms[0], norms[2], norms[4]), subnet)

    def model_of(self, subnet: SubnetConfig) -> onnx.ModelProto:
        """Return the graph of a subnet."""
        import onnx

        nodes, initializers = self.model.graph.node, self._initializers
        first, second, rest = self.bounds
        end_of_second = nodes[rest].input[0]
        graph = onnx.GraphProto(name=self.model.graph.name)
        graph.input.extend(self.model.graph.input)
        graph.output.extend(self.model.graph.output)
        made: dict[str, onnx.TensorProto] = {}

        def add(part: Iterable[onnx.NodeProto], sizes: Sizes, names: dict[str, str]) -> None:
            for node in part:
                copied = graph.node.add()
                copied.CopyFrom(node)
                copied.name = ""
                copied.input[:] = [names.get(name, name) for name in node.input]
                copied.output[:] = [names.get(name, name) for name in node.output]
                for old, new in zip(node.input, copied.input, strict=True):
                    if old in initializers and new not in made:
                        made[new] = resized(initializers[old], sizes, new)

        width = {self.template.embed_dim: subnet.embed_dim}
        add(nodes[:first], width, {})
        x = nodes[first].input[0]
        for i in range(subnet.depth):
            sizes = {**width, **dict(zip(_own(self.template, 0), _own(subnet, i), strict=True))}
            part = nodes[first:second] if i == 0 else nodes[second:rest]
            end = nodes[second].input[0] if i == 0 else end_of_second
            names = {name: f"{i}/{name}" for name in self._own_names(part, i == 0)}
            if i > 0:
                names[nodes[second].input[0]] = x
            add(part, sizes, names)
            x = names.get(end, end)
        add(nodes[rest:], width, {end_of_second: x})
        graph.initializer.extend(made.values())
        model = onnx.ModelProto(ir_version=self.model.ir_version, graph=graph)
        model.opset_import.extend(self.model.opset_import)
        return model

    @property
    def _initializers(self) -> dict[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    def _own_names(self, part: Iterable[onnx.NodeProto], is_first: bool) -> Iterator[str]:
        """Yield what belongs to one block alone: its results, and initializers of its own sizes."""
        before = self.model.graph.node[: self.bounds[1]]
        shared = {name for node in before for name in node.input}
        own = set(_own(self.template, 0))
        initializers = self._initializers
        for node in part:
            if not is_first:  # the first block has results that all blocks use
                yield from node.output
            for name in node.input:
                if name in initializers and (
                    (not is_first and name not in shared) or own & set(_sizes(initializers[name]))
                ):
                    yield name


def resized(tensor: onnx.TensorProto, sizes: Sizes, name: str) -> onnx.TensorProto:
    """Return an initializer with other sizes; its values are repeated.

    Args:
        tensor: a weight, or a shape, whose values are sizes.
        sizes: what replaces which size.
        name: of the result.
    """
    from onnx import numpy_helper

    values = numpy_helper.to_array(tensor)
    if values.dtype == np.int64:
        changed = [sizes.get(int(v), int(v)) for v in values.ravel()]
        return numpy_helper.from_array(np.array(changed).reshape(values.shape), name)
    shape = [sizes.get(size, size) for size in values.shape]
    return numpy_helper.from_array(np.resize(values, shape), name)


def _sizes(tensor: onnx.TensorProto) -> list[int]:
    from onnx import TensorProto, numpy_helper

    if tensor.data_type == TensorProto.INT64:  # a shape; its own length is no size
        return list(map(int, numpy_helper.to_array(tensor).ravel()))
    return list(tensor.dims)


def _own(subnet: SubnetConfig, block: int) -> tuple[int, ...]:
    """Return the sizes of a block that other blocks may have otherwise."""
    heads, attn_dim = subnet.num_heads[block], subnet.attn_dims[block]
    return heads, attn_dim, 3 * attn_dim, subnet.hidden_dims[block]


def _template(space: SearchSpace) -> SubnetConfig:
    """Return a subnet of two blocks whose sizes are no others of the graph."""
    side = space.img_size // space.patch_size
    places, waves = 2 * side, 6 * (side - 1) + 1
    taken = {space.num_classes, side, side**2, side**2 + 1, places, places + 2, waves, waves + 2}
    taken |= {space.patch_size, 3, HEAD_DIM}
    heads = next(heads for heads in HEADS if heads not in taken)
    for dim in itertools.count(88, 16):
        subnet = SubnetConfig.uniform(2, dim, heads, 2.25)
        sizes = {dim, *_own(subnet, 0)}
        if len(sizes) == 5 and not sizes & taken:
            return subnet
    raise AssertionError("there are other sizes")
