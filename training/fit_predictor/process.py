"""The Gaussian process behind a predictor: its kernel, its fit, its mean as polynomials.

The polynomials are those of `autoformer_zoo.specialization.predictor`. Coefficients of one term are
alike in similar depths and widths, effects of single choices have a size for each depth and width,
and the variance of a product follows those of its two choices. Variances, sizes and noise maximise
the marginal likelihood (Rasmussen and Williams, Gaussian Processes for Machine Learning, section
5.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.specialization.predictor import Predictor, encode_choices
from training.fit_predictor.measured import Array

Hyper = dict[str, Tensor]
CENTRE = 2 / 3  # the mean of z squared over three choices
CELL_VARIANCE = 4.0  # of a constant around the average of the subnets: decided by the data alone
DECIMALS = 5  # of stored coefficients, in percent: far below the errors of prediction


@dataclass(frozen=True, eq=False)
class Design:
    """The terms of the polynomials for n subnets, without their coefficients.

    Args:
        cells: pairs of depth and embed_dim. (K, 2)
        cell: each subnet's. (n,)
        known: choices of heads, and of MLP ratios, sorted.
        z: scaled choices, 0 beyond the depth. (n, Z)
        main: z, then centred squares of the columns `square`. (n, Z + S)
        square: columns of z with more than two choices: only they have squares. (S,)
        near: products of neighbours' heads, of their ratios, and of a block's two. (n, N)
        near_of: columns of z that each is a product of. (2, N)
        near_kind: 0, 1, 2 in that order. (N,)
    """

    cells: Array
    cell: Array
    known: tuple[Array, Array]
    z: Tensor
    main: Tensor
    square: Array
    near: Tensor
    near_of: Array
    near_kind: Array


def make_design(subnets: Sequence[SubnetConfig]) -> Design:
    """Return the design of subnets."""
    sizes = np.array([(subnet.depth, subnet.embed_dim) for subnet in subnets])
    cells, cell = np.unique(sizes, axis=0, return_inverse=True)
    heads = np.unique([heads for subnet in subnets for heads in subnet.num_heads])
    ratios = np.unique([ratio for subnet in subnets for ratio in subnet.mlp_ratio])
    blocks = int(cells[:, 0].max())
    z = encode_choices(subnets, heads, ratios, blocks)
    square = np.flatnonzero(np.repeat([len(heads) > 2, len(ratios) > 2], blocks))
    main = np.nan_to_num(np.concatenate([z, z[:, square] ** 2 - CENTRE], axis=1))
    z = np.nan_to_num(z)
    one = np.arange(blocks)
    pairs = [(one[:-1], one[1:]), (blocks + one[:-1], blocks + one[1:]), (one, blocks + one)]
    first, second = (np.concatenate(columns) for columns in zip(*pairs, strict=True))
    return Design(
        cells,
        cell.reshape(-1),
        (heads, ratios),
        torch.tensor(z),
        torch.tensor(main),
        square,
        torch.tensor(z[:, first] * z[:, second]),
        np.stack([first, second]),
        np.repeat([0, 1, 2], [len(columns) for columns, _ in pairs]),
    )


@dataclass(frozen=True, eq=False)
class Process:
    """A Gaussian process over subnets: kernel, hyperparameters and coefficients.

    Args:
        design: the subnets.
        has_products: False for sums over blocks alone.

    Hyperparameters are logarithms, by name: `main`, variances of the main terms; `pair` and
    `heredity`, of products; `near`, more for those of neighbours; `noise`, by width;
    `size_depth` and `size_width`, of main effects; `reach`, how far main terms and products are
    alike, in steps of depth and of width.
    """

    design: Design
    has_products: bool = True

    def start(self) -> Hyper:
        """Return the values to start from, percent squared for variances."""
        depths, widths = (len(np.unique(column)) for column in self.design.cells.T)
        values = {
            "main": (self.design.main.shape[1], -7.0),
            "pair": (1, -13.0),
            "heredity": (1, 0.0),
            "near": (3, -12.0),
            "noise": (widths, -7.0),
            "size_depth": (depths, 0.0),
            "size_width": (widths, 0.0),
            "reach": (4, 0.0),
        }
        return {name: torch.full((n,), value).double() for name, (n, value) in values.items()}

    def penalty(self, hyper: Hyper) -> Tensor:
        """Return the negative logarithm of the prior."""
        blocks = self.design.z.shape[1]
        linear, square = hyper["main"][:blocks], hyper["main"][blocks:]
        groups = [  # values, where they are expected, and how far from it
            (linear, linear.mean(), 1.5),
            (square, square.mean() if len(square) else 0.0, 1.0),
            (hyper["near"], -12.0, 3.0),
            (hyper["reach"], 0.0, 2.0),
            (hyper["heredity"], 0.0, 2.0),
            (hyper["size_depth"], 0.0, 1.0),  # only the product of sizes matters
            (hyper["size_width"], 0.0, 1.0),
        ]
        return torch.cat([((x - mean) / sd).square() for x, mean, sd in groups]).sum() / 2

    def between_cells(self, hyper: Hyper) -> tuple[Tensor, Tensor]:
        """Return how alike main terms, times their sizes, and products are in two cells: (K, K)."""
        step = [
            torch.tensor(np.unique(c, return_inverse=True)[1].reshape(-1))
            for c in self.design.cells.T
        ]
        size = torch.exp(hyper["size_depth"][step[0]] + hyper["size_width"][step[1]])
        apart = [(s[:, None] - s).abs().double() for s in step]
        reach = torch.exp(-hyper["reach"])
        both = [torch.exp(-0.5 * (apart[0] * reach[k] + apart[1] * reach[k + 1])) for k in (0, 2)]
        return both[0] * torch.outer(size, size), both[1]

    def variances(self, hyper: Hyper) -> tuple[Tensor, Tensor, Tensor]:
        """Return the variances of main terms, of factors of products, and of near products."""
        main = hyper["main"].exp()
        logs = hyper["main"][: self.design.z.shape[1]]
        factor = torch.exp(torch.sigmoid(hyper["heredity"]) * (logs - logs.mean()))
        return main, factor, hyper["near"].exp()[torch.tensor(self.design.near_kind)]

    def kernel(self, hyper: Hyper, rows: Array) -> Tensor:
        """Return the covariance of subnets without noise: (n, n)."""
        design, cell = self.design, torch.tensor(self.design.cell[rows])
        mains, products = self.between_cells(hyper)
        main, factor, near = self.variances(hyper)
        x, z, pairs = design.main[rows], design.z[rows], design.near[rows]
        same = CELL_VARIANCE * (cell[:, None] == cell)
        sums = (x * main) @ x.T * mains[cell][:, cell] + same
        if not self.has_products:
            return sums
        # Products of all pairs, without listing them: the square of a sum less its squares.
        gram = (z * factor) @ z.T
        square = (z.square() * factor.square()) @ z.square().T
        product = hyper["pair"].exp() * (gram.square() - square) / 2 + (pairs * near) @ pairs.T
        return sums + product * products[cell][:, cell]

    def noise(self, hyper: Hyper, rows: Array) -> Tensor:
        """Return the variance of each subnet's noise: (n,)."""
        width = np.unique(self.design.cells[:, 1], return_inverse=True)[1].reshape(-1)
        return hyper["noise"].exp()[torch.tensor(width[self.design.cell[rows]])]

    def fit(self, top1: Array, rows: Array, iterations: int, start: Hyper) -> Hyper:
        """Return the hyperparameters that maximise the marginal likelihood of some rows.

        Args:
            top1: of all subnets, in percent. (n,)
            rows: numbers of the subnets to use.
            iterations: most steps of the optimiser.
            start: values to start from.
        """
        from scipy.optimize import minimize  # takes a second to import

        names, ends = list(start), np.cumsum([len(values) for values in start.values()])
        residual = torch.tensor(top1[rows] - self.averages(top1, rows)[self.design.cell[rows]])

        def split(flat: Tensor) -> Hyper:
            return dict(zip(names, torch.tensor_split(flat, ends[:-1].tolist()), strict=True))

        def loss(values: Array) -> tuple[float, Array]:
            flat = torch.tensor(values, requires_grad=True)
            hyper = split(flat)
            covariance = self.kernel(hyper, rows) + torch.diag(self.noise(hyper, rows))
            with torch.no_grad():
                factor = torch.linalg.cholesky(covariance)
                inverse = torch.cholesky_inverse(factor)
                alpha = inverse @ residual
                fit = residual @ alpha / 2 + factor.diagonal().log().sum()
                # The gradient with respect to the covariance, in closed form.
                slope = (inverse - torch.outer(alpha, alpha)) / 2
            penalty = self.penalty(hyper)
            (slope * covariance).sum().add(penalty).backward()
            assert flat.grad is not None
            return float(fit + penalty.detach()), flat.grad.numpy()

        flat = torch.cat(list(start.values())).numpy()
        found = minimize(
            loss,
            flat,
            jac=True,
            method="L-BFGS-B",
            bounds=[(-16, 4)] * len(flat),
            options={"maxiter": iterations},
        )
        return split(torch.tensor(np.round(found.x, 3)))

    def averages(self, top1: Array, rows: Array) -> Array:
        """Return the average accuracy of some rows in each cell; of all where a cell has none."""
        count = np.bincount(self.design.cell[rows], minlength=len(self.design.cells))
        total = np.bincount(self.design.cell[rows], top1[rows], minlength=len(self.design.cells))
        return np.where(count > 0, total / np.maximum(count, 1), top1[rows].mean())

    @torch.no_grad()
    def predictor(self, hyper: Hyper, top1: Array, rows: Array) -> Predictor:
        """Return the process's mean, given some rows, as polynomials; intervals are left open."""
        design, cell = self.design, torch.tensor(self.design.cell[rows])
        average = self.averages(top1, rows)
        residual = torch.tensor(top1[rows] - average[design.cell[rows]])
        covariance = self.kernel(hyper, rows) + torch.diag(self.noise(hyper, rows))
        alpha = torch.linalg.solve(covariance, residual)
        mains, products = (part[:, cell] * alpha for part in self.between_cells(hyper))  # (K, n)
        main, factor, near = self.variances(hyper)
        coefficients = (mains @ design.main[rows] * main).numpy()
        z = design.z[rows] * factor
        products_of_all = torch.einsum("kn,na,nb->kab", products, z, z).triu(1)
        quadratic = (products_of_all * hyper["pair"].exp()).numpy()
        first, second = design.near_of
        quadratic[:, first, second] += (products @ design.near[rows] * near).numpy()
        quadratic *= self.has_products
        blocks = design.z.shape[1]
        square = coefficients[:, blocks:]
        quadratic[:, design.square, design.square] = square
        present = np.arange(blocks) % (blocks // 2) < design.cells[:, :1]  # (K, Z)
        same = torch.zeros(len(average)).double().index_add(0, cell, alpha) * CELL_VARIANCE
        constant = average + same.numpy() - CENTRE * (square * present[:, design.square]).sum(1)
        linear = coefficients[:, :blocks] * present
        quadratic *= present[:, :, None] * present[:, None]
        return Predictor(
            cells=design.cells,
            num_heads=design.known[0],
            mlp_ratio=design.known[1],
            constant=constant,
            linear=linear,
            quadratic=quadratic,
            half_width=np.zeros(len(average)),
            about=np.array("{}"),
        )


def fit_both(
    design: Design, top1: Array, rows: Array, iterations: int, start: Sequence[Hyper] = ()
) -> tuple[list[Hyper], Predictor]:
    """Fit a process with products and one without.

    Args:
        design: all subnets.
        top1: of all subnets, in percent. (n,)
        rows: numbers of the subnets to use.
        iterations: most steps of the optimiser.
        start: hyperparameters of both to start from.

    Returns:
        The hyperparameters of both, and the average of both polynomials, rounded.
    """
    processes = [Process(design, has_products) for has_products in (True, False)]
    starts = start or [process.start() for process in processes]
    hypers = [
        process.fit(top1, rows, iterations, begin)
        for process, begin in zip(processes, starts, strict=True)
    ]
    one, other = (
        process.predictor(hyper, top1, rows)
        for process, hyper in zip(processes, hypers, strict=True)
    )
    average = {
        name: ((getattr(one, name) + getattr(other, name)) / 2).round(DECIMALS)
        for name in ("constant", "linear", "quadratic")
    }
    for name in ("linear", "quadratic"):
        average[name] = average[name].astype(np.float32)
    return hypers, replace(one, **average)
