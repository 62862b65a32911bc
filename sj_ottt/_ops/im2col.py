"""Convolution of few places as one matrix product.

A library's convolution is made for large images. On a CPU, where a map has shrunk to 4 × 4 or 2 × 2
pixels and its channels have grown to hundreds, it multiplies several times slower than a matrix
product does. There the patches that the kernel sees become the rows of a matrix:

    X [N·H'·W', k·k·C]      y = X Wᵀ      ∇W = gᵀ X      ∇X = g W

(`python -m benchmarks small_maps` measures both.)
"""

import math

import torch
from torch import Tensor

__all__ = ["Patches", "added_product"]

# Up to here the matrix product was the faster one.
FEW_PLACES = {torch.float32: 4, torch.float64: 4}  # of a map, however many maps
FEW_PLACES_IN_HALF = 16
ROWS_PER_CHANNEL = {torch.float32: 0.5, torch.float64: 0.5}  # rows of X for each input channel
ROWS_PER_CHANNEL_IN_HALF = 2.0
LEAST_CHANNELS = 256  # with fewer, the calls take longer than the products
MOST_NUMBERS = 2**25  # in X, which is there beside the activations


class Patches:
    """How the patches of a convolution's input lie in it.

    Args:
        shape: Of the input, [N, C, H, W].
        kernel: Its height and width.
        stride: Of the rows and the columns; so are `padding` and `dilation`.
        padding: Zeros added on both sides.
        dilation: Spacing of the kernel's points.
    """

    def __init__(
        self,
        shape: torch.Size,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
    ):
        self._shape, self._kernel = shape, kernel
        self._stride, self._padding, self._dilation = stride, padding, dilation
        self._padded = [n + 2 * p for n, p in zip(shape[2:], padding, strict=True)]
        reaches = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        self.places = [
            (n - reach) // s + 1 if n >= reach else 0
            for n, reach, s in zip(self._padded, reaches, stride, strict=True)
        ]

    def pay(self, dtype: torch.dtype) -> bool:
        """Return whether the matrix product is the faster one, for numbers of a dtype."""
        n, channels = self._shape[:2]
        places = math.prod(self.places)
        few = places <= FEW_PLACES.get(dtype, FEW_PLACES_IN_HALF)
        ratio = ROWS_PER_CHANNEL.get(dtype, ROWS_PER_CHANNEL_IN_HALF)
        few_rows = n * places <= ratio * channels
        numbers = n * places * channels * math.prod(self._kernel)
        return 0 < numbers <= MOST_NUMBERS and channels >= LEAST_CHANNELS and (few or few_rows)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return W s + b, [N, C_out, H', W'], of an input and a weight [C_out, C, k, k]."""
        rows, matrix = self.of(x), _matrix(weight)
        out = rows @ matrix.t() if bias is None else torch.addmm(bias, rows, matrix.t())
        return out.view(len(x), *self.places, -1).permute(0, 3, 1, 2).contiguous()

    def gradient(self, grad: Tensor, weight: Tensor) -> Tensor:
        """Return ∇s, [N, C, H, W], of the output's gradient [N, C_out, H', W'] and the weight."""
        return self.sum(_rows(grad) @ _matrix(weight)).contiguous()

    def weight_gradient(self, grad: Tensor, x: Tensor, total: Tensor | None = None) -> Tensor:
        """Return ∇W, [C_out, C, k, k], of the output's gradient and the input, or its trace.

        Where there is a total that lies in memory as the product does, it is added to that, which
        is returned.
        """
        rows, patches = _rows(grad).t(), self.of(x)
        if total is not None and total.is_contiguous(memory_format=torch.channels_last):
            added_product(_matrix(total), rows, patches)
            return total
        product = rows @ patches
        return product.view(-1, *self._kernel, self._shape[1]).permute(0, 3, 1, 2)

    def of(self, x: Tensor) -> Tensor:
        """Return the matrix X of an input [N, C, H, W]: a patch a row, its channels innermost."""
        n, channels, height, width = self._shape
        top, left = self._padding
        if top or left:
            padded = x.new_zeros(n, *self._padded, channels)
            padded[:, top : top + height, left : left + width] = x.permute(0, 2, 3, 1)
        else:
            padded = x.permute(0, 2, 3, 1).contiguous()
        per_map, per_row, per_column, _ = padded.stride()
        strides = [per_row * self._stride[0], per_column * self._stride[1]]
        strides += [per_row * self._dilation[0], per_column * self._dilation[1]]
        size = (n, *self.places, *self._kernel, channels)
        patches = padded.as_strided(size, (per_map, *strides, 1))
        return patches.reshape(n * math.prod(self.places), -1)

    def sum(self, rows: Tensor) -> Tensor:
        """Return the map [N, C, H, W] of a matrix like X: the adjoint of `of`."""
        n, channels, height, width = self._shape
        patches = rows.view(n, *self.places, *self._kernel, channels)
        padded = rows.new_zeros(n, *self._padded, channels)
        for i in range(self._kernel[0]):
            for j in range(self._kernel[1]):
                places = [
                    slice(d * k, d * k + s * (m - 1) + 1, s)
                    for k, d, s, m in zip(
                        (i, j), self._dilation, self._stride, self.places, strict=True
                    )
                ]
                padded[:, places[0], places[1]] += patches[:, :, :, i, j]
        top, left = self._padding
        return padded[:, top : top + height, left : left + width].permute(0, 3, 1, 2)


def added_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Return a matrix product; where there is a total, that, to which the product is added."""
    return left @ right if total is None else total.addmm_(left, right)


def _matrix(weight: Tensor) -> Tensor:
    """Return W as [C_out, k·k·C]: as it lies in memory in channels-last format."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _rows(grad: Tensor) -> Tensor:
    """Return [N, C_out, H', W'] as [N·H'·W', C_out]."""
    return grad.permute(0, 2, 3, 1).flatten(0, 2)
