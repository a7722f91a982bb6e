"""AutoFormer(cfg): the static network, with the model protocol of timm's own ViT.

Built from a `SubnetConfig`; `weights/` fills it, `autoformer.py` registers it with timm. Read from
top to bottom: sizes, initial weights, changes of shape, forward.

Source: arXiv 2107.00651, section 3, and microsoft/Cream@4a13c40 (AutoFormer/model). Pre-norm ViT
with one width, its own number of heads and MLP ratio in each block, heads that are always 64 wide,
relative position in attention, LayerNorm eps 1e-5, and the mean over patches (without the class
token) before the head.

Axes: B batch, N tokens (1 + h * w), C embed_dim, h and w rows and columns of patches.

No `from __future__ import annotations` here: TorchScript needs the types of what torch.fx made.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from timm.layers import PatchEmbed, resample_abs_pos_embed, trunc_normal_
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from timm.models._input import update_model_input_size
from timm.models.vision_transformer import global_pool_nlc
from torch import Tensor, nn

from autoformer_zoo.network.attention import AttentionForm
from autoformer_zoo.network.block import Block, LayerNorm
from autoformer_zoo.network.fast import fast_blocks
from autoformer_zoo.network.relpos import positions
from autoformer_zoo.space import SubnetConfig

POOLS = ("", "avg", "avgmax", "max", "token")


class AutoFormer(nn.Module):
    """A static AutoFormer.

    In evaluation mode on the CPU without gradients its blocks compute the same with fewer calls,
    see `fast.py`. Weights are read where they are: no copy of them is kept that could be outdated.

    Args:
        cfg: the subnet, as `SubnetConfig` or as its dict (as stored in a JSON file).
        img_size: input side, or (height, width), in pixels.
        patch_size: patch side in pixels.
        in_chans: channels of the input.
        num_classes: outputs of the head; 0 leaves the head out.
        global_pool: how tokens become one vector: one of `POOLS`, "" for no pooling.
        drop_rate: dropout before the head.
        pos_drop_rate: dropout after the position embedding.
        proj_drop_rate: dropout after the projections of attention and MLP.
        attn_drop_rate: dropout of attention weights.
        drop_path_rate: stochastic depth of the last block; the others rise linearly from 0.
        drop_path_depth: the depth over which that rise runs: the supernet's, also when one subnet
            is retrained (design of the official code); by default the subnet's own.
        dynamic_img_size: accept any multiple of the patch size at run time.
        dynamic_img_pad: pad the input to a multiple of the patch size.
        attention: form of the attention, see `attention.relpos_attention`.
        device: where parameters are created.
        dtype: their type.

    Raises:
        ValueError: the config or an argument is invalid.
    """

    def __init__(
        self,
        cfg: SubnetConfig | Mapping[str, Any],
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        drop_path_depth: int | None = None,
        dynamic_img_size: bool = False,
        dynamic_img_pad: bool = False,
        attention: AttentionForm = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        cfg = cfg if isinstance(cfg, SubnetConfig) else SubnetConfig.from_dict(cfg)
        self.cfg = cfg
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = _checked_pool(global_pool)
        self.embed_dim = self.num_features = self.head_hidden_size = cfg.embed_dim
        self.num_prefix_tokens, self.num_reg_tokens, self.has_class_token = 1, 0, True
        self.dynamic_img_size = dynamic_img_size
        self.grad_checkpointing = False

        self.patch_embed = PatchEmbed(
            img_size,
            patch_size,
            in_chans,
            cfg.embed_dim,
            strict_img_size=not dynamic_img_size,
            dynamic_img_pad=dynamic_img_pad,
            **factory,
        )
        self.cls_token = nn.Parameter(torch.empty(1, 1, cfg.embed_dim, **factory))
        num_tokens = 1 + self.patch_embed.num_patches
        self.pos_embed = nn.Parameter(torch.empty(1, num_tokens, cfg.embed_dim, **factory))
        self.pos_drop = nn.Dropout(pos_drop_rate)
        rates = _drop_path_rates(drop_path_rate, cfg.depth, drop_path_depth)
        self.blocks = nn.ModuleList(
            Block(
                cfg.embed_dim,
                cfg.num_heads[i],
                cfg.hidden_dims[i],
                attn_drop=attn_drop_rate,
                proj_drop=proj_drop_rate,
                drop_path=rates[i],
                form=attention,
                **factory,
            )
            for i in range(cfg.depth)
        )
        self.norm: nn.Module = LayerNorm(cfg.embed_dim, **factory)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = _make_head(cfg.embed_dim, num_classes, **factory)
        reduction = self.patch_embed.feat_ratio()
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": cfg.embed_dim, "reduction": reduction}
            for i in range(cfg.depth)
        ]
        if self.pos_embed.device.type != "meta":
            self.init_weights(needs_reset=False)

    # Weights

    def init_weights(self, *, needs_reset: bool = True) -> None:
        """Initialise all weights as upstream does: truncated normal of 0.02, zero biases.

        Args:
            needs_reset: also reset modules that initialise themselves when they are built;
                needed after `to_empty`.
        """
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if needs_reset and reset is not None:
                reset()
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        trunc_normal_(self.pos_embed, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters, besides norms and biases, to exclude from weight decay.

        Upstream meant the relative position tables too, but its pattern `rel_pos_embed` matches no
        parameter (microsoft/Cream@4a13c40, supernet_transformer.py, no_weight_decay).
        """
        tables = {f"blocks.{i}.attn.rel_pos" for i in range(len(self.blocks))}
        return {"pos_embed", "cls_token"} | tables

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that assign parameters to layers, for layer-wise learning rates."""
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute blocks in the backward pass."""
        self.grad_checkpointing = enable

    # Changes of shape

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one, or by none for 0 classes, and optionally the pooling."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = _checked_pool(global_pool)
        like = self.pos_embed
        self.head = _make_head(self.embed_dim, num_classes, device=like.device, dtype=like.dtype)
        self.head.train(self.training)

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
    ) -> None:
        """Change the input size or the patch size, resampling the position embedding.

        Relative position needs no resampling, but grids with a side above 14 read rows 1 and 29 of
        the tables, which training at 14 x 14 never reached (they still hold their initial
        values): fine-tune before you trust the accuracy of such a size.

        Args:
            img_size: new input side, or (height, width), in pixels; None keeps it.
            patch_size: new patch side in pixels; None keeps it.
        """
        old_grid = self.patch_embed.grid_size
        self.patch_embed.set_input_size(img_size=img_size, patch_size=patch_size)
        if self.patch_embed.grid_size != old_grid:
            resampled = self._resample_pos_embed(self.patch_embed.grid_size, old_grid)
            self.pos_embed = nn.Parameter(resampled.detach(), self.pos_embed.requires_grad)
        for info in self.feature_info:
            info["reduction"] = self.patch_embed.feat_ratio()
        # Keeps the arguments that save_for_hf writes up to date.
        update_model_input_size(self, self.patch_embed.img_size, patch_size=patch_size)

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove the layers that the intermediates of these indices do not need.

        Args:
            indices: last n blocks, or the blocks by index.
            prune_norm: remove the final norm.
            prune_head: remove the head and pooling.

        Returns:
            The indices that remain.
        """
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        depth, cfg = max_index + 1, self.cfg
        self.blocks = self.blocks[:depth]
        # Files that are written from here on state the network as it is.
        self.cfg = SubnetConfig(depth, cfg.embed_dim, cfg.num_heads[:depth], cfg.mlp_ratio[:depth])
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take_indices

    # Forward

    def forward(self, x: Tensor) -> Tensor:
        """Classify images (B, in_chans, height, width) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the normalised tokens (B, N, C), class token first."""
        x, grid = self._embed(x)
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            for block in self.blocks:
                x = block(x, grid)
        else:
            x, _ = self._run_blocks(x, grid, len(self.blocks))
        return self.norm(x)

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """Pool tokens (B, N, C) to (B, C) by one of `POOLS`, by default the model's."""
        pool_type = self.global_pool if pool_type is None else pool_type
        return global_pool_nlc(x, pool_type, self.num_prefix_tokens)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool the tokens of `forward_features` and classify.

        Args:
            x: tokens (B, N, C).
            pre_logits: return the pooled features (B, C) instead of logits.

        Returns:
            Logits (B, num_classes); with `global_pool=""` of every token, (B, N, num_classes).
        """
        x = self.pool(x)  # (B, C)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)  # (B, num_classes)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Any:  # as timm: a list, a tuple or a dict by the flags
        """Return the outputs of chosen blocks, and the final features.

        Args:
            x: images (B, in_chans, height, width).
            indices: last n blocks, the blocks by index, or all for None.
            return_prefix_tokens: return each intermediate with its class token (B, 1, C).
            norm: apply the final norm to the intermediates.
            stop_early: skip the blocks after the last requested one.
            output_fmt: "NCHW" for maps (B, C, h, w), "NLC" for tokens (B, N - 1, C).
            intermediates_only: do not return the final features.
            output_dict: return a dict with image_features, image_intermediates and, with
                `return_prefix_tokens`, image_intermediates_prefix.

        Returns:
            (features, intermediates), unless the flags choose another form.

        Raises:
            ValueError: `output_fmt` is unknown.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt is {output_fmt!r}; expected NCHW or NLC")
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        x, grid = self._embed(x)
        count = max_index + 1 if stop_early else len(self.blocks)
        x, taken = self._run_blocks(x, grid, count, take_indices)
        if norm:
            taken = [self.norm(tokens) for tokens in taken]
        prefix = [tokens[:, : self.num_prefix_tokens] for tokens in taken]
        maps = [tokens[:, self.num_prefix_tokens :] for tokens in taken]  # (B, h * w, C)
        if output_fmt == "NCHW":
            maps = [
                tokens.transpose(1, 2).unflatten(2, grid).contiguous()  # (B, C, h, w)
                for tokens in maps
            ]
        if output_dict:
            out: dict[str, Any] = {"image_intermediates": maps}
            if return_prefix_tokens:
                out["image_intermediates_prefix"] = prefix
            if not intermediates_only:
                out["image_features"] = self.norm(x)
            return out
        intermediates = list(zip(maps, prefix, strict=True)) if return_prefix_tokens else maps
        return intermediates if intermediates_only else (self.norm(x), intermediates)

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
    ) -> list[Any]:  # tensors, or pairs of them with return_prefix_tokens
        """Return the outputs of the last n blocks, or of those by index (DINO's interface).

        Arguments as in `forward_intermediates`; `reshape` returns maps instead of tokens.
        """
        return self.forward_intermediates(
            x,
            n,
            return_prefix_tokens=return_prefix_tokens,
            norm=norm,
            output_fmt="NCHW" if reshape else "NLC",
            intermediates_only=True,
        )

    def _embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Turn images (B, in_chans, height, width) into tokens (B, N, C) and a grid (h, w)."""
        height, width = x.shape[-2:]
        x = self.patch_embed(x)  # (B, h * w, C)
        grid = self.patch_embed.grid_size
        pos_embed: Tensor = self.pos_embed  # (1, N, C)
        if self.dynamic_img_size:
            grid = self.patch_embed.dynamic_feat_size((height, width))
            # Returns it for the same grid; a test here would be control flow for fx and export.
            pos_embed = self._resample_pos_embed(grid, self.patch_embed.grid_size)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)  # (B, N, C)
        return self.pos_drop(x + pos_embed), grid

    def _resample_pos_embed(self, new_grid: tuple[int, int], old_grid: tuple[int, int]) -> Tensor:
        return resample_abs_pos_embed(
            self.pos_embed, new_grid, old_grid, num_prefix_tokens=self.num_prefix_tokens
        )

    def _run_blocks(
        self, x: Tensor, grid: tuple[int, int], count: int, wanted: Collection[int] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the first `count` blocks on tokens (B, N, C).

        Returns:
            Their output, and the outputs of the blocks whose index is in `wanted`; (B, N, C) each.
        """
        taken = []
        # In a graph, once for all blocks. Otherwise each block computes its own.
        shared = positions(grid, x) if torch.compiler.is_compiling() else None
        for i, block in enumerate(fast_blocks(list(self.blocks)[:count], x, grid)):
            if self.grad_checkpointing:
                x = checkpoint(block, x, grid, shared)
            else:
                x = block(x, grid, shared)
            if i in wanted:
                taken.append(x)
        return x, taken


def whole_patches(img_size: int | tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of an image that is made of whole patches.

    Raises:
        ValueError: a side is not a positive multiple of the patch's.
    """
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if height < 1 or width < 1 or height % patch_size[0] or width % patch_size[1]:
        raise ValueError(
            f"img_size is {img_size!r}; expected positive multiples of the patch size {patch_size}"
        )
    return height, width


def _make_head(embed_dim: int, num_classes: int, **factory: Any) -> nn.Module:
    return nn.Linear(embed_dim, num_classes, **factory) if num_classes > 0 else nn.Identity()


def _checked_pool(global_pool: str) -> str:
    if global_pool not in POOLS:
        known = ", ".join(map(repr, POOLS))
        raise ValueError(f"global_pool is {global_pool!r}; expected one of {known}")
    return global_pool


def _drop_path_rates(rate: float, depth: int, over_depth: int | None) -> list[float]:
    """Rise linearly from 0 to `rate` over `over_depth` blocks, cut to the first `depth`."""
    steps = max((over_depth or depth) - 1, 1)
    return [rate * i / steps for i in range(depth)]
