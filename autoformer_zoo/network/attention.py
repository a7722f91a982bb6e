"""Attention with contextual 2D relative position: the explicit form and its fast exact forms.

For patches at rows r and columns c, AutoFormer adds to every key and value a learned vector for
the clamped row and column distance between query and key (iRPE, arXiv 2107.14222, as used in
arXiv 2107.00651 and in microsoft/Cream@4a13c40, AutoFormer/model/module/multihead_super.py):

    T[i, j]    = table_rows[clamp(r_j - r_i)] + table_columns[clamp(c_j - c_i)]
    logit_ij   = scale * (q_i . k_j + q_i . Tk[i, j])
    out_i      = sum_j softmax_j(logit_ij) * (v_j + Tv[i, j])

Row 0 of a table serves every pair with the class token in it. `explicit_attention` is these three
lines, and builds tensors of N x N x D. The fast forms use that a distance depends on the row or on
the column alone. One product of each query with all 2R table rows has every `q_i . Tk` in it, and
`relpos.positions` has the index of each row and column of the grid among them. By the same indices
the attention that a query pays to each row and column is summed up by table row, for the values.

Pure functions of tensors; `block.py` calls `relpos_attention`.
Axes: B batch, H heads, N tokens (1 + height * width), D head width, R table rows, G grid side.
"""

from __future__ import annotations

import os
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from autoformer_zoo.network.relpos import is_tracing_graph, positions, relative_index
from autoformer_zoo.network.workspace import MAX_TOKENS, augmented, is_plain_inference
from autoformer_zoo.space import SCALE

AttentionForm = Literal["auto", "explicit", "augmented", "decomposed"]
FORM_VARIABLE = "AUTOFORMER_ZOO_ATTENTION"


def relpos_attention(
    qkv: Tensor,
    tables: Tensor,
    grid: tuple[int, int],
    dropout: float = 0.0,
    form: str = "auto",
    shared: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attend with relative position, in the given form or in the fastest one.

    Args:
        qkv: queries, keys and values (3, B, H, N, D), in memory of any order; class token first,
            then patches row by row.
        tables: (4, R, D): keys by row, keys by column, values by row, values by column.
        grid: rows and columns of patches, N = 1 + rows * columns.
        dropout: probability of dropping an attention weight; every form is exact under it.
        form: one of `AttentionForm`; "auto" follows `choose_form`.
        shared: `relpos.positions` of the grid; computed here if None.

    Returns:
        Attended values (B, H, N, D).

    Raises:
        ValueError: `form` is unknown, or N is not 1 + rows * columns.
    """
    if not torch.jit.is_scripting():  # type: ignore[attr-defined]
        return _attend(qkv, tables, grid, dropout, form, shared)
    q, k, v = qkv.unbind(0)
    return augmented_attention(q, k, v, tables, grid, dropout, shared)


def _attend(
    qkv: Tensor,
    tables: Tensor,
    grid: tuple[int, int],
    dropout: float,
    form: str,
    shared: tuple[Tensor, Tensor] | None,
) -> Tensor:
    tokens = qkv.shape[3]
    if tokens != 1 + grid[0] * grid[1]:
        raise ValueError(f"{tokens} tokens given; a grid of {grid} needs 1 + {grid[0]} * {grid[1]}")
    in_place = not dropout and qkv.dtype == tables.dtype and is_plain_inference(qkv)
    if check_form(form) == "auto":
        training, is_graph = torch.is_grad_enabled(), is_tracing_graph()
        form = choose_form(tokens, qkv.device.type, training, qkv.dtype, is_graph, in_place)
    if form == "augmented" and in_place:
        return augmented(qkv, tables, grid)
    q, k, v = qkv.unbind(0)
    return _FORMS[form](q, k, v, tables, grid, dropout, shared)


def check_form(form: str, source: str = "attention") -> AttentionForm:
    """Return `form` if it is the name of a form.

    Raises:
        ValueError: `form`, given by `source`, is unknown.
    """
    if form not in get_args(AttentionForm):
        raise ValueError(
            f"{source} is {form!r}; expected one of {', '.join(get_args(AttentionForm))}"
        )
    return form  # type: ignore[return-value]


def choose_form(
    num_tokens: int,
    device: str,
    training: bool,
    dtype: torch.dtype = torch.float32,
    is_graph: bool = False,
    in_place: bool = False,
) -> AttentionForm:
    """Return the form that was measured as the fastest; in a graph, the one of fewest operators.

    `in_place` is True where the augmented form is that of `workspace.py`.

    The environment variable AUTOFORMER_ZOO_ATTENTION overrules it.

    Raises:
        ValueError: the variable holds an unknown form.
    """
    if (requested := os.environ.get(FORM_VARIABLE, "auto")) != "auto":
        return check_form(requested, FORM_VARIABLE)
    if is_graph:  # traced once for all modes; each operator takes time to compile
        return "augmented"
    # On 2 cores a training step in the decomposed form took 0.75 to 0.85 of the augmented one at 65
    # and 197 tokens; its N x N weights are kept for the backward pass, too many beyond that. In
    # inference the augmented form, written in place, was never behind by more than the noise in
    # fp32 and bf16; in fp16, and where it is not in place, the decomposed form is ahead.
    is_half = dtype.itemsize == 2 and not (in_place and dtype == torch.bfloat16)
    if device == "cpu" and (training or is_half) and num_tokens <= MAX_TOKENS:
        return "decomposed"
    return "augmented"


def explicit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Tensor,
    grid: tuple[int, int],
    dropout: float = 0.0,
    shared: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attend by the definition: the specification that the other forms are tested against.

    Needs memory for two tensors of (N, N, D).

    Args:
        q: queries (B, H, N, D), class token first, then patches row by row.
        k: keys (B, H, N, D).
        v: values (B, H, N, D).
        tables: as in `relpos_attention`, like the other arguments and the result.
        grid: rows and columns of patches.
        dropout: probability of dropping an attention weight.
        shared: not used by this form.
    """
    weights = F.dropout(attention_weights(q, k, tables, grid), dropout)
    return apply_weights(weights, v, tables, grid)


def attention_weights(
    q: Tensor, k: Tensor, tables: Tensor, grid: tuple[int, int], relative: bool = True
) -> Tensor:
    """Return how much each query attends to each key, (B, H, N, N); each row sums to 1.

    Args:
        q: queries (B, H, N, D), class token first, then patches row by row.
        k: keys (B, H, N, D).
        tables: as in `relpos_attention`.
        grid: rows and columns of patches.
        relative: False leaves the relative position out of the logits.
    """
    logits = q @ k.transpose(-2, -1)  # (B, H, N, N)
    if relative:
        rows, columns = relative_index(grid, q.device)  # (N, N) each
        rel_k = tables[0][rows] + tables[1][columns]  # (N, N, D)
        logits = logits + torch.einsum("bhid,ijd->bhij", q, rel_k)
    return (logits * SCALE).softmax(-1)


def apply_weights(weights: Tensor, v: Tensor, tables: Tensor, grid: tuple[int, int]) -> Tensor:
    """Sum the values, with their relative position, by attention weights (B, H, N, N)."""
    rows, columns = relative_index(grid, v.device)  # (N, N) each
    rel_v = tables[2][rows] + tables[3][columns]  # (N, N, D)
    return weights @ v + torch.einsum("bhij,ijd->bhid", weights, rel_v)  # (B, H, N, D)


def augmented_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Tensor,
    grid: tuple[int, int],
    dropout: float = 0.0,
    shared: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attend with relative position carried in extra head channels.

    The query gets its product with each row's and each column's key vector, key and value get the
    marks of their row and column. One plain scaled_dot_product_attention then adds the relative
    logits by itself, and returns in the extra channels how much of a query's attention went to
    each row, each column and CLS. Arguments and result as in `explicit_attention`.
    """
    B, H, _, D = q.shape
    index, marks = positions(grid, q) if shared is None else shared  # (N, P) each
    table_k, table_v = tables.reshape(2, -1, D).unbind(0)  # (2R, D) each
    products = q @ table_k.T  # (B, H, N, 2R)
    index = index.expand(B, H, -1, -1)  # as gather wants it
    marks = marks.expand(B, H, -1, -1)
    attended = F.scaled_dot_product_attention(
        torch.cat([q, products.gather(-1, index)], -1),
        torch.cat([k, marks], -1),
        torch.cat([v, marks], -1),
        dropout_p=dropout,
        scale=D**-0.5,  # SCALE; TorchScript takes no constants of a module
    )  # (B, H, N, D + P)
    by_table_row = torch.zeros_like(products).scatter_add(-1, index, attended[..., D:])
    return attended[..., :D] + by_table_row @ table_v


def decomposed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: Tensor,
    grid: tuple[int, int],
    dropout: float = 0.0,
    shared: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attend with explicit N x N weights, their bias and marginals factored by row and column.

    Arguments and result as in `explicit_attention`.
    """
    B, H, N, D = q.shape
    index, marks = positions(grid, q) if shared is None else shared  # (N, P) each
    table_k, table_v = tables.reshape(2, -1, D).unbind(0)  # (2R, D) each
    products = q @ table_k.T  # (B, H, N, 2R)
    index = index.expand(B, H, -1, -1)
    bias = products.gather(-1, index) @ marks.T  # (B, H, N, N)
    logits = torch.baddbmm(
        bias.flatten(0, 1),
        q.flatten(0, 1),
        k.flatten(0, 1).transpose(1, 2),
        beta=SCALE,
        alpha=SCALE,
    )  # (B * H, N, N)
    # Sums are in fp32 whatever the type: CUDA's autocast casts, the CPU's softmax does so inside.
    weights = F.dropout(logits.softmax(-1).to(v.dtype), dropout).view(B, H, N, N)
    marginals = weights @ marks  # (B, H, N, P): attention to each row, each column and CLS
    by_table_row = torch.zeros_like(products).scatter_add(-1, index, marginals)
    return weights @ v + by_table_row @ table_v


_FORMS = {
    "explicit": explicit_attention,
    "augmented": augmented_attention,
    "decomposed": decomposed_attention,
}
