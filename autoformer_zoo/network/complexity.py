"""Parameters and multiply-adds of a subnet, in closed form.

Counts a `SubnetConfig` without building a network, so that a search can afford it for every
candidate. Does not measure time (`benchmarks/`). Importing it needs the standard library alone.

The three counts take the same arguments, described at `count_params`.

Source: the network of `vit.py` and the attention forms of `attention.py`; the official counting is
`get_complexity` of microsoft/Cream@4a13c40, AutoFormer/model/supernet_transformer.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoformer_zoo.published import GENERIC, MODELS, SPACES, find_model
from autoformer_zoo.space import HEAD_DIM, MAX_DISTANCE, NUM_REL_POS, SubnetConfig

if TYPE_CHECKING:
    from autoformer_zoo.network.attention import AttentionForm

Size = int | tuple[int, int]
AUGMENTED_PADDING = 16  # the extra channels of the augmented form are a multiple, `workspace.py`


def count_params(
    subnet: SubnetConfig | str,
    img_size: Size | None = None,
    patch_size: Size | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
) -> int:
    """Return the number of parameters of `AutoFormer(subnet, ...)`.

    Args:
        subnet: the network, or the name of a model. Sizes that are not given are those of the
            published model with this subnet, else ImageNet's: 224 pixels, patches of 16, 1000
            classes.
        img_size: input side, or (height, width), in pixels; the position embedding depends on it.
        patch_size: patch side, or (height, width), in pixels.
        num_classes: outputs of the head; 0 for no head.
        in_chans: channels of the input.

    Returns:
        Number of parameters, biases and relative position tables included.

    Raises:
        ValueError: the name is unknown, or a size is not positive or less than a patch.
    """
    subnet, grid, pixels, num_classes = _resolved(
        subnet, img_size, patch_size, num_classes, in_chans
    )
    dim = subnet.embed_dim
    norm = 2 * dim  # weight and bias
    total = (pixels + 1) * dim  # patch embedding
    total += dim + (1 + grid[0] * grid[1]) * dim  # class token, position embedding
    for attn_dim, hidden_dim in zip(subnet.attn_dims, subnet.hidden_dims, strict=True):
        total += 2 * norm
        total += (dim + 1) * 3 * attn_dim + (attn_dim + 1) * dim  # qkv, proj
        total += 4 * NUM_REL_POS * HEAD_DIM  # keys and values, by row and by column
        total += (dim + 1) * hidden_dim + (hidden_dim + 1) * dim  # fc1, fc2
    return total + norm + (dim + 1) * num_classes


def count_macs(
    subnet: SubnetConfig | str,
    img_size: Size | None = None,
    patch_size: Size | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
    form: AttentionForm = "auto",
) -> int:
    """Return the multiply-adds of one image's forward pass in eval mode.

    Included: every convolution and matrix product that the built network executes, namely the patch
    embedding, the linear layers of attention and MLP, both attention products, all products that
    relative position costs in the form of attention used, zeros of padding and one-hot factors
    included, and the head on the pooled features.
    Not included: LayerNorm, softmax, GELU, pooling, biases, residual and other additions, and
    everything that only moves numbers. FLOPs, where a multiply-add counts as two, are twice this.

    Args:
        subnet: the network, or a model's name; sizes that are not given as in `count_params`.
        img_size: as in `count_params`, like the next three.
        patch_size: see there.
        num_classes: see there.
        in_chans: see there.
        form: form of the attention; "auto" is the one that the network picks by itself on the CPU
            (`attention.choose_form`, which imports torch and reads its environment variable).

    Raises:
        ValueError: the name or `form` is unknown, a size is not positive, or the image is smaller
            than a patch.
    """
    subnet, grid, pixels, num_classes = _resolved(
        subnet, img_size, patch_size, num_classes, in_chans
    )
    dim = subnet.embed_dim
    patches = grid[0] * grid[1]
    tokens = 1 + patches
    per_head = _attention_macs(_resolved_form(form, tokens), grid)
    total = patches * pixels * dim
    for i in range(subnet.depth):
        attn_dim, hidden_dim = subnet.attn_dims[i], subnet.hidden_dims[i]
        total += tokens * (4 * dim * attn_dim + 2 * dim * hidden_dim)  # qkv, proj, fc1, fc2
        total += subnet.num_heads[i] * per_head
    return total + dim * num_classes


def official_complexity(
    subnet: SubnetConfig | str,
    img_size: Size | None = None,
    patch_size: Size | None = None,
    num_classes: int | None = None,
    in_chans: int = 3,
) -> float:
    """Return what the official `get_complexity` returns for this subnet; for comparison only.

    These "FLOPs" are roughly multiply-adds and may be fractional. They do not count what a network
    executes, see the comments; `count_macs` does.
    """
    # Upstream quirks (microsoft/Cream@4a13c40, supernet_transformer.py and model/module/*,
    # get_complexity; `test_official_complexity_equals_the_official_values`) are marked "quirk".
    subnet, grid, pixels, num_classes = _resolved(
        subnet, img_size, patch_size, num_classes, in_chans
    )
    dim = subnet.embed_dim
    patches = grid[0] * grid[1]
    n = patches + 2  # quirk: one token is added for CLS, and one more in every layer of a block
    total = float(patches * pixels * dim)
    total += dim  # quirk: of all biases only the patch embedding's counts
    total += (patches + 1) * dim / 2  # quirk: an addition is half an operation, here and below
    for attn_dim, hidden_dim in zip(subnet.attn_dims, subnet.hidden_dims, strict=True):
        total += 2 * n * dim  # quirk: both LayerNorms at one operation a channel, the last at none
        total += n * dim * 3 * attn_dim + n * attn_dim * dim  # qkv, proj
        total += 2 * n * n * attn_dim
        # quirk: a relative position product costs 14 a pair, whatever the number of channels
        total += 2 * MAX_DISTANCE * n * n + n * n / 2 + n * attn_dim / 2
        total += 2 * n * dim * hidden_dim  # fc1, fc2
    return total + (patches + 1) * dim * num_classes  # quirk: the head at every token


def _resolved(
    subnet: SubnetConfig | str,
    img_size: Size | None,
    patch_size: Size | None,
    num_classes: int | None,
    in_chans: int,
) -> tuple[SubnetConfig, tuple[int, int], int, int]:
    """Fill in the sizes that are not given, and check them.

    Returns:
        The subnet; rows and columns of patches; the numbers in a patch, channels included; classes.
    """
    if isinstance(subnet, str):
        spec = find_model(subnet)[1]
        subnet = spec.subnet
    else:
        # With ImageNet's sizes a published subnet would silently get another network's count.
        own = (spec for spec in MODELS.values() if spec.subnet == subnet)
        spec = next(own, MODELS[GENERIC])
    space = SPACES[spec.space]
    classes = space.num_classes if num_classes is None else num_classes
    height, width = _pair("img_size", space.img_size if img_size is None else img_size)
    patch = _pair("patch_size", space.patch_size if patch_size is None else patch_size)
    if height < patch[0] or width < patch[1]:
        raise ValueError(
            f"img_size {height} x {width} is smaller than a patch of {patch[0]} x {patch[1]}"
        )
    if classes < 0:
        raise ValueError(f"num_classes is {classes!r}; expected 0 or more")
    if in_chans < 1:
        raise ValueError(f"in_chans is {in_chans!r}; expected 1 or more")
    return subnet, (height // patch[0], width // patch[1]), in_chans * patch[0] * patch[1], classes


def _attention_macs(form: str, grid: tuple[int, int]) -> int:
    """Count one head's multiply-adds between the projections, as inference on the CPU makes them.

    Elsewhere the augmented form spares the padding: less than 1 % of the network's.
    """
    height, width = grid
    tokens = 1 + height * width
    pairs = tokens * tokens
    if form == "explicit":  # q by k, q by Tk, weights by v, weights by Tv
        return 4 * pairs * HEAD_DIM
    # Queries by all rows of two tables, once for keys and once for values.
    by_table_row = 2 * tokens * HEAD_DIM * 2
    if form == "decomposed":  # apart: products at 64 channels, and with marks of places
        return 2 * pairs * (HEAD_DIM + height + width + 2) + by_table_row * NUM_REL_POS
    # q by k and weights by v carry a channel for each row, each column and CLS along, padded.
    channels = height + width + 1
    channels += -channels % AUGMENTED_PADDING
    rows = max(NUM_REL_POS, 2 * height, 2 * width)
    return 2 * pairs * (HEAD_DIM + channels) + by_table_row * rows


def _resolved_form(form: str, tokens: int) -> str:
    forms = ("auto", "explicit", "augmented", "decomposed")
    if form not in forms:
        raise ValueError(f"form is {form!r}; expected one of {', '.join(forms)}")
    if form != "auto":
        return form
    from autoformer_zoo.network.attention import choose_form

    return choose_form(tokens, "cpu", False)


def _pair(name: str, size: Size) -> tuple[int, int]:
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in pair):
        raise ValueError(f"{name} is {size!r}; expected a positive whole number, or two of them")
    return pair[0], pair[1]
