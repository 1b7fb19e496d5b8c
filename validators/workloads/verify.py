"""How a matrix product is verified. Three methods, each with what it can miss.

1. The reference product, once for each pair of operands, by arithmetic that the product under test does not use:
   - `elementwise`: every element against a product of the same operands in a wider format, in which they are exact:
     float32 on the plain units for the tensor cores' tf32, fp16, bf16, fp8; float64 for fp32. An element is wrong when
     it is off by more than `relative * |reference| + absolute`, the rounding of the output, of the accumulator and of
     the reference itself. Nothing above is missed.
   - `freivalds` (fp64): for VECTORS random sign vectors r, C r against A (B r), both summed in float64
     by multiply-and-add kernels, no matrix product. A row is wrong when a component is off by more than `absolute`.
     One wrong element in a row is never missed above 2 * absolute, because |r_j| = 1. Several in one row, the
     largest above 2 * absolute, are missed by one vector with probability at most 1/2 (of the two signs of that
     element at most one lands inside), by all with at most 2**-VECTORS = 1e-6. R. Freivalds, "Probabilistic machines
     can use less running time", 1977. In fp64 2 * absolute is 5e-9 at n = 8192, where elements are of the order 90.
     False alarms: rounding errors bounded by d in each element give |e r| > z * d * sqrt(n) with probability
     at most 2 exp(-z*z/2) (Hoeffding, over the signs, whatever the errors are): z = 7.5 makes it 1e-12 a row.
   - `whole_sums` (int8, and whole numbers in every format): the same with WEIGHTS vectors of odd 64-bit weights,
     modulo 2**64, and no tolerance. One wrong element in a row is never missed: an odd number times what is not 0
     modulo 2**64 is not 0. Several are missed by one vector with probability at most 2**(v-63), where 2**v divides
     all of the errors: 2**-32 where they are under 2**31, 2**-128 by all four.
2. Every timed product, by `Projection`: its bytes, in segments, times 16 vectors of random nonzero int8 weights, in
   exact int32 arithmetic, against the same checksums of the reference product. Any one wrong byte is never missed;
   a wrong segment of any other shape, chosen before the weights, is missed with probability at most 254**-16 = 3e-39
   (given all other weights, at most one of the 254 values of the last one cancels). One pass over C, no host sync:
   on an H200 0.17 ms for 16384 x 16384 bf16, where the product takes 12.8 ms.
   This asks for equal bits, which cuBLAS promises for equal calls on one device. Checksums as in K.-H. Huang and
   J. A. Abraham, "Algorithm-based fault tolerance for matrix operations", 1984.
3. Where the first products show that the library does not repeat its bits (some CPU libraries), `Nearness`: every
   element of every timed product within twice the reference's tolerance of the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Tuple

import torch
from torch import Tensor

VECTORS = 20
"""Sign vectors of Freivalds' check."""

WEIGHTS = 4
"""Vectors of odd 64-bit weights in a check of whole numbers."""

COLUMNS = 16
"""Weight vectors of a projection. On an H200 8 take longer than 16."""

SEGMENTS = (65536, 32768, 16384, 8192, 4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8)
"""Bytes that one checksummed segment can have. 65536 * 128 * 127 < 2**31: int32 is exact."""

ENOUGH_SEGMENTS = 16384
"""So many keep 128 multiprocessors busy, at 128 rows each; fewer and longer are slower (H200)."""

BLOCK_BYTES = 256 * 2**20
"""Temporary memory of a reference check."""


@dataclass(frozen=True)
class Finding:
    """What a reference check found: wrong elements or rows, the largest error as a fraction of the allowed one."""

    wrong: int
    worst: float
    first_row: int = -1


def elementwise(
    left: Tensor, right: Tensor, product: Tensor, relative: float, absolute: float, *, wide: torch.dtype = torch.float32
) -> Finding:
    """Compare each element with a product of the same operands in a wider format, in blocks of rows."""
    factor = right.to(wide)
    step = max(1, BLOCK_BYTES // (16 * max(factor.shape)))
    wrong, worst, first = 0, 0.0, -1
    for row in range(0, left.shape[0], step):
        reference = left[row : row + step].to(wide) @ factor
        error = (product[row : row + step].to(wide) - reference).abs_()
        allowed = reference.abs_().mul_(relative).add_(absolute)
        bad = ~(error <= allowed)  # so that NaN is wrong
        found = int(bad.sum())
        if found and first < 0:
            first = row + int(bad.any(dim=1).to(torch.uint8).argmax())
        wrong += found
        worst = max(worst, float(torch.nan_to_num(error / allowed, nan=float("inf")).max()))
    return Finding(wrong, worst, first)


def freivalds(left: Tensor, right: Tensor, product: Tensor, absolute: float, seed: int) -> Finding:
    """Compare C r with A (B r) for VECTORS random sign vectors, in float64 without a matrix product."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (VECTORS, right.shape[1]), generator=generator, dtype=torch.float64) * 2 - 1
    signs = signs.to(product.device)
    expected = _times(left, _times(right, signs).t().contiguous())
    error = (_times(product, signs) - expected).abs_()
    bad = ~(error <= absolute).all(dim=1)
    wrong = int(bad.sum())
    worst = float(torch.nan_to_num(error, nan=float("inf")).max()) / absolute
    return Finding(wrong, worst, int(bad.to(torch.uint8).argmax()) if wrong else -1)


def whole_sums(left: Tensor, right: Tensor, product: Tensor, seed: int) -> Finding:
    """Compare C r with A (B r) for WEIGHTS random vectors of odd 64-bit numbers, modulo 2**64.

    For matrices of whole numbers whose product is exact: each row of C must be right. What is no whole number is wrong.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (WEIGHTS, right.shape[1])
    weights = torch.zeros(shape, dtype=torch.int64)
    for part in range(4):
        weights |= torch.randint(0, 65536, shape, generator=generator, dtype=torch.int64) << 16 * part
    weights = (weights | 1).to(product.device)
    expected = _times(left, _times(right, weights).t().contiguous())
    bad = (_times(product, weights) != expected).any(dim=1)
    if product.is_floating_point():
        bad |= _not_whole(product)
    wrong = int(bad.sum())
    return Finding(wrong, float("inf") if wrong else 0.0, int(bad.to(torch.uint8).argmax()) if wrong else -1)


def _times(matrix: Tensor, vectors: Tensor) -> Tensor:
    """The matrix times each of `vectors` (one a row), by elementwise products and sums in the vectors' format."""
    step = max(1, BLOCK_BYTES // (16 * matrix.shape[1]))
    blocks: List[Tensor] = []
    for row in range(0, matrix.shape[0], step):
        block = matrix[row : row + step]
        if vectors.dtype is torch.int64 and block.is_floating_point():
            block = torch.nan_to_num(block.double(), 0.0, 0.0, 0.0)  # not whole: found by itself
        block = block.to(vectors.dtype)
        blocks.append(torch.stack([(block * vector).sum(dim=1) for vector in vectors], dim=1))
    return torch.cat(blocks)


def _not_whole(matrix: Tensor) -> Tensor:
    """Rows with an element that is no whole number that an int64 and a float64 both hold."""
    step = max(1, BLOCK_BYTES // (16 * matrix.shape[1]))
    blocks: List[Tensor] = []
    for row in range(0, matrix.shape[0], step):
        block = matrix[row : row + step].double()
        blocks.append(~((block.trunc() == block) & (block.abs() <= 2.0**53)).all(dim=1))
    return torch.cat(blocks)


class Projection:
    """Checksums of a matrix's bits: its bytes, in segments, times random weights. See the module's text."""

    def __init__(self, like: Tensor, seed: int) -> None:
        size = like.numel() * like.element_size()
        longest = max(512, size // ENOUGH_SEGMENTS)
        self.segment = next(
            length for length in SEGMENTS if length <= longest and size % length == 0 and size // length > 16
        )
        self.row_bytes = like.shape[1] * like.element_size()
        self.count = size // self.segment
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randint(1, 128, (COLUMNS, self.segment), generator=generator, dtype=torch.int8)
        weights *= torch.randint(0, 2, weights.shape, generator=generator, dtype=torch.int8) * 2 - 1
        self._weights = weights.to(like.device).t()

    def rooms(self, matrices: int, device: torch.device) -> Tensor:
        """Where the checksums of so many matrices go: for each, `count` rows of COLUMNS."""
        return torch.empty(matrices, self.count, COLUMNS, dtype=torch.int32, device=device)

    def into(self, matrix: Tensor, room: Tensor) -> None:
        """Queue the checksums of a matrix, which is contiguous."""
        torch._int_mm(matrix.view(torch.int8).view(self.count, self.segment), self._weights, out=room)

    def row(self, segment: int) -> int:
        """The first row of the matrix that a segment covers."""
        return segment * self.segment // self.row_bytes


class WordSums:
    """Checksums where there is no int8 product: the row's bits as 64-bit words, summed modulo 2**64.

    One wrong word is never missed; several only where they cancel, or where words of a row changed places.
    """

    def __init__(self, like: Tensor) -> None:
        self.count = like.shape[0]

    def rooms(self, matrices: int, device: torch.device) -> Tensor:
        """Where the checksums of so many matrices go: for each, one for each row."""
        return torch.empty(matrices, self.count, 1, dtype=torch.int64, device=device)

    def into(self, matrix: Tensor, room: Tensor) -> None:
        """Queue the checksums of a matrix."""
        torch.sum(matrix.view(torch.int64), dim=1, keepdim=True, out=room)

    def row(self, segment: int) -> int:
        """A segment is a row."""
        return segment


class Bits:
    """Verifies products bit for bit against verified ones, through their checksums."""

    def __init__(self, like: Tensor, seed: int) -> None:
        self._sum: Projection | WordSums
        try:
            self._sum = Projection(like, seed)
            self._sum.into(like, self._sum.rooms(1, like.device)[0])
            self.method = "checksums"
        except torch.cuda.OutOfMemoryError:  # no reason for the weaker sums: the next smaller size
            raise
        except (RuntimeError, StopIteration):  # a card or a torch without an int8 product; a size without segments
            self._sum = WordSums(like)
            self.method = "word sums"
        self.known: List[Tensor] = []

    def learn(self, product: Tensor) -> None:
        """Keep the checksums of a verified product; the first learnt is product 0."""
        self.known.append(self.rooms(1, product.device)[0])
        self._sum.into(product, self.known[-1])

    def rooms(self, products: int, device: torch.device) -> Tensor:
        """Memory for what `record` keeps of each of so many products."""
        return self._sum.rooms(products, device)

    def record(self, which: int, product: Tensor, room: Tensor) -> None:
        """Queue what is needed to judge a product later. No host sync."""
        self._sum.into(product, room)

    def wrong(self, rooms: Tensor) -> List[bool]:
        """Which of the recorded products, 0 and 1 in turn, differ from the verified ones. One host sync."""
        known = torch.stack(self.known)
        flags = [(rooms[which::2] != known[which]).flatten(1).any(dim=1) for which in (0, 1)]
        return [bool(one) for one in torch.stack(flags, dim=1).flatten().tolist()]

    def bad_rows(self, which: int, room: Tensor) -> List[int]:
        """First rows of the segments in which a recorded product differs from the verified one."""
        wrong = (room != self.known[which]).any(dim=1)
        return [self._sum.row(int(segment)) for segment in wrong.nonzero()[:, 0]] if bool(wrong.any()) else []


class Nearness:
    """Verifies products element by element against verified ones, within twice the reference's tolerance."""

    method = "tolerance"

    def __init__(self, relative: float, absolute: float, rows: int) -> None:
        self._tolerance: Tuple[float, float] = (2 * relative, 2 * absolute)
        self._known: List[Tensor] = []
        self._rows = rows

    def learn(self, product: Tensor) -> None:
        """Keep a verified product; the first learnt is product 0."""
        self._known.append(product.clone())

    def rooms(self, products: int, device: torch.device) -> Tensor:
        """Memory for what `record` keeps of each of so many products."""
        return torch.empty(products, self._rows, dtype=torch.bool, device=device)

    def wrong(self, rooms: Tensor) -> List[bool]:
        """Which of the recorded products are too far off. One host sync."""
        return [bool(one) for one in rooms.any(dim=1).tolist()]

    def record(self, which: int, product: Tensor, room: Tensor) -> None:
        """Queue the comparison of a product. No host sync."""
        known = self._known[which].double()
        relative, absolute = self._tolerance
        near = (product.double() - known).abs_() <= known.abs_().mul_(relative).add_(absolute)
        torch.any(~near, dim=1, out=room)

    def bad_rows(self, which: int, room: Tensor) -> List[int]:
        """Rows in which a recorded product has an element that is too far off."""
        return [int(row) for row in room.nonzero()[:, 0]]
