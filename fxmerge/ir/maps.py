"""The maps of a SuperNet: per axis one matrix a parent, dense or a diagonal plus low rank, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["merge", "turn", "unmerge"]
"""`turn` is a merge map beside another one on the same tensor: the parents' shares are counted once, by the other."""
Form = Literal["full", "fixed"] | int
"""How a map holds its matrices: dense and trained, constant, or a trained diagonal plus low rank r (0: no more)."""


def along(tensor: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """`tensor` with `matrix` (m × n) applied to its axis of size n, which becomes m."""
    moved = tensor.movedim(axis, -1)
    return torch.nn.functional.linear(moved, matrix).movedim(-1, axis)


class Map(nn.Module):
    """One matrix per parent between the merged space (size `size`) and the parents' spaces (`sizes`).

    `support[k]` = (merged positions, parent positions) of the rectangular identity between the two: which coordinate
    of parent k stands where in the merged space before anything is aligned. The matrices live on the device of `like`,
    in float32 or in its dtype if that is wider.
    """

    def __init__(
        self,
        kind: Kind,
        size: int,
        sizes: Sequence[int],
        support: Sequence[tuple[Tensor, Tensor]],
        like: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.kind: Kind = kind
        self.size, self.sizes = size, tuple(sizes)
        self.form: Form = "fixed"
        self.alone = False
        """Whether what it writes is never a sum over the parents: each has a stem of its own."""
        self.dtype = torch.float32 if like is None else torch.promote_types(like.dtype, torch.float32)
        self._first = tuple(support)
        for k, (merged, own) in enumerate(support):
            self._stand(
                k, merged if like is None else merged.to(like.device), own if like is None else own.to(like.device)
            )
        self.dense, self.diagonals = nn.ParameterList(), nn.ParameterList()
        self.lefts, self.rights = nn.ParameterList(), nn.ParameterList()
        self.joined: list[tuple[frozenset[int], Map]] = []
        self.average()

    def support(self, k: int) -> tuple[Tensor, Tensor]:
        return getattr(self, f"merged{k}"), getattr(self, f"own{k}")

    def support_on(self, matrices: Sequence[Tensor]) -> bool:
        """Let the diagonals stand where these matrices have entries, until `average`; False if they have no order."""
        found = [matrix.nonzero().unbind(1) for matrix in matrices]
        if any(len(set(places.tolist())) < len(places) for pair in found for places in pair):
            return False
        for k, pair in enumerate(found):
            merged, own = pair if self.kind != "unmerge" else pair[::-1]
            self._stand(k, merged, own)
        return True

    def _stand(self, k: int, merged: Tensor, own: Tensor) -> None:
        self.register_buffer(f"merged{k}", merged, persistent=False)
        self.register_buffer(f"own{k}", own, persistent=False)

    def shape(self, k: int) -> tuple[int, int]:
        """(rows, columns) of the matrix of parent k: d × d_k to merge, d_k × d to unmerge."""
        return (self.size, self.sizes[k]) if self.kind != "unmerge" else (self.sizes[k], self.size)

    def eye(self, k: int) -> Tensor:
        """The rectangular identity of parent k, in this map's orientation (float64)."""
        merged, own = self.support(k)
        eye = torch.zeros(self.shape(k), dtype=torch.float64, device=merged.device)
        rows, columns = (merged, own) if self.kind != "unmerge" else (own, merged)
        eye[rows, columns] = 1.0
        return eye

    def shares(self, weights: Sequence[float] | None = None) -> list[Tensor]:
        """Per parent: what it contributes to each coordinate of its support, so that all parents that have a merged
        coordinate sum to one there. `weights` default to equal ones."""
        weights = [1.0] * len(self.sizes) if weights is None else list(weights)
        total = torch.zeros(self.size, dtype=torch.float64, device=self.support(0)[0].device)
        for k, weight in enumerate(weights):
            total[self.support(k)[0]] += weight
        # a coordinate that only parents of weight zero have is theirs all the same
        bare = total == 0
        shares = []
        for k, weight in enumerate(weights):
            merged = self.support(k)[0]
            share = torch.where(bare[merged], 1.0, weight / total[merged].clamp_min(1e-300))
            shares.append(share)
        count = torch.zeros_like(total)
        for k, share in enumerate(shares):
            count[self.support(k)[0]] += share
        return [share / count[self.support(k)[0]] for k, share in enumerate(shares)]

    def average(self, weights: Sequence[float] | None = None) -> None:
        """Hold the (rectangular) weighted average as a constant diagonal: λ_k I to merge, I where nothing is summed."""
        self.form = 0
        self._part()
        for k, (merged, own) in enumerate(self._first):
            device = self.support(k)[0].device
            self._stand(k, merged.to(device), own.to(device))
        self.diagonals = nn.ParameterList()
        for share in self.shares(weights):
            value = share if self.kind == "merge" and not self.alone else torch.ones_like(share)
            self.diagonals.append(nn.Parameter(value.to(self.dtype), requires_grad=False))

    def start(self, matrices: Sequence[Tensor], form: Form, generator: torch.Generator | None = None) -> None:
        """Hold `matrices` (one per parent) in `form`. A diagonal form keeps only the entries on the support.

        The left factor of a low rank starts at zero and the right one small and random, so the product starts at zero
        and both receive gradients after one step. Coordinates that no parent has start small and random.
        """
        self.form = form
        self._part()
        if form == "full":
            matrices = self._filled(matrices, generator)
        self.dense, self.diagonals = nn.ParameterList(), nn.ParameterList()
        self.lefts, self.rights = nn.ParameterList(), nn.ParameterList()
        if isinstance(form, str):
            for matrix in matrices:
                self.dense.append(nn.Parameter(matrix.to(self.dtype).clone(), requires_grad=form == "full"))
            return
        for k, matrix in enumerate(matrices):
            merged, own = self.support(k)
            rows, columns = (merged, own) if self.kind != "unmerge" else (own, merged)
            self.diagonals.append(nn.Parameter(matrix[rows, columns].to(self.dtype)))
            if form:
                (m, n), rank = self.shape(k), min(form, *self.shape(k))
                self.lefts.append(nn.Parameter(self._left(m, rank, generator).to(matrix.device, self.dtype)))
                noise = torch.randn(rank, n, generator=generator, dtype=torch.float32)
                self.rights.append(nn.Parameter((noise / n**0.5).to(matrix.device, self.dtype)))

    def _filled(self, matrices: Sequence[Tensor], generator: torch.Generator | None) -> list[Tensor]:
        """The matrices with small random rows of M for merged coordinates that no parent has.

        Zero rows of M before zero columns of U would never receive a gradient.
        """
        bare = self.bare()
        if self.kind != "merge" or not bool(bare.any()):
            return list(matrices)
        filled = []
        for matrix in matrices:
            noise = torch.randn(matrix.shape, generator=generator, dtype=torch.float64) / matrix.shape[1] ** 0.5
            filled.append(torch.where(bare[:, None], noise.to(matrix.dtype), matrix))
        return filled

    def _left(self, size: int, rank: int, generator: torch.Generator | None) -> Tensor:
        """The left factor of a low rank: zero, but for rows of M for merged coordinates that no parent has.

        Behind a ReLU a row of zeros would never receive a gradient.
        """
        left, bare = torch.zeros(size, rank), self.bare()
        if self.kind == "merge" and bool(bare.any()):
            left[bare] = torch.randn(int(bare.sum()), rank, generator=generator) / rank**0.5
        return left

    def bare(self) -> Tensor:
        """Which merged coordinates no parent has, as of a result that is wider than all of them."""
        bare = torch.ones(self.size, dtype=torch.bool)
        for k in range(len(self.sizes)):
            bare[self.support(k)[0]] = False
        return bare

    def join(self, parents: Sequence[int], share: float) -> None:
        """Hold what these parents have still, and put one trained matrix behind it for all of them: what is merged
        already moves as one (M_k = A · M_k, U_k = U_k · A). It starts as I, of a merge map as `share` · I."""
        size = torch.arange(self.size, device=self.support(0)[0].device)
        behind = Map(self.kind, self.size, (self.size,), ((size, size),), torch.zeros((), dtype=self.dtype))
        eye = torch.eye(self.size, dtype=torch.float64)
        behind.start([share * eye if self.kind == "merge" and not self.alone else eye], self.form)
        for parts in (self.dense, self.diagonals, self.lefts, self.rights):
            for k in parents:
                if k < len(parts):
                    parts[k].requires_grad_(False)
        for _, before in self.joined:
            before.requires_grad_(False)
        self.joined.append((frozenset(parents), behind))
        self.add_module(f"joined{len(self.joined) - 1}", behind)

    def _part(self) -> None:
        for number in range(len(self.joined)):
            delattr(self, f"joined{number}")
        self.joined = []

    @torch.no_grad()
    def put(self, k: int, matrix: Tensor) -> None:
        """Let parent k alone have this matrix, of which a diagonal form keeps the entries on its support."""
        if isinstance(self.form, str):
            self.dense[k].copy_(matrix)
            return
        merged, own = self.support(k)
        rows, columns = (merged, own) if self.kind != "unmerge" else (own, merged)
        self.diagonals[k].copy_(matrix[rows, columns])

    def matrix(self, k: int) -> Tensor:
        """The matrix of parent k, dense."""
        matrix = self._own_matrix(k)
        for parents, behind in self.joined:
            if k in parents:
                matrix = matrix @ behind.matrix(0) if self.kind == "unmerge" else behind.matrix(0) @ matrix
        return matrix

    def _own_matrix(self, k: int) -> Tensor:
        if isinstance(self.form, str):
            dense: Tensor = self.dense[k]
            return dense
        merged, own = self.support(k)
        rows, columns = (merged, own) if self.kind != "unmerge" else (own, merged)
        diagonal = self.diagonals[k]
        matrix: Tensor = diagonal.new_zeros(self.shape(k)).index_put((rows, columns), diagonal)
        return matrix + self.lefts[k] @ self.rights[k] if self.form else matrix

    def apply_along(self, tensor: Tensor, k: int, axis: int, *, transposed: bool = False) -> Tensor:
        """`tensor` with parent k's matrix (or its transpose) on one axis; a low rank is never made dense.

        Computed in the wider of both dtypes: maps held in float32 fold in float64 where the weights are float64.
        """
        behind = [each for parents, each in self.joined if k in parents]
        if not behind:
            return self._apply_own(tensor, k, axis, transposed)
        if (self.kind == "unmerge") != transposed:
            for each in reversed(behind):
                tensor = each.apply_along(tensor, 0, axis, transposed=transposed)
            return self._apply_own(tensor, k, axis, transposed)
        tensor = self._apply_own(tensor, k, axis, transposed)
        for each in behind:
            tensor = each.apply_along(tensor, 0, axis, transposed=transposed)
        return tensor

    def _apply_own(self, tensor: Tensor, k: int, axis: int, transposed: bool) -> Tensor:
        held = self.dense if isinstance(self.form, str) else self.diagonals
        tensor = tensor.to(torch.promote_types(tensor.dtype, held[k].dtype))
        if isinstance(self.form, str):
            matrix = self.dense[k].to(tensor.dtype)
            return along(tensor, matrix.T if transposed else matrix, axis)
        merged, own = self.support(k)
        rows, columns = (merged, own) if (self.kind != "unmerge") != transposed else (own, merged)
        size = self.shape(k)[1 if transposed else 0]
        moved = tensor.movedim(axis, -1)
        taken: Tensor = moved.index_select(-1, columns) * self.diagonals[k].to(tensor.dtype)
        result = taken.new_zeros(*moved.shape[:-1], size).index_copy(-1, rows, taken)
        if self.form:
            first, second = self.rights[k].to(tensor.dtype), self.lefts[k].to(tensor.dtype)
            if transposed:
                first, second = second.T, first.T
            result = result + nn.functional.linear(nn.functional.linear(moved, first), second)
        return result.movedim(-1, axis)

    def extra_repr(self) -> str:
        return f"{self.kind}, {self.size} <-> {list(self.sizes)}, form={self.form}"


class AxisMap(nn.Module):
    """The maps of one axis: blocks that partition it, each with positions in the merged axis and in every parent's.

    A plain axis has one block; a fused query-key-value axis has three. A block whose map is None is shared by all
    parents as it is (raw input features, say) and passes unchanged. Positions live on `device`.
    """

    def __init__(self, kind: Kind, size: int, sizes: Sequence[int], device: torch.device | str | None = None) -> None:
        super().__init__()
        self.device = device
        self.kind: Kind = kind
        self.size, self.sizes = size, tuple(sizes)
        self.blocks = nn.ModuleList()
        self.whole = False

    def add(self, block: Map | None, merged: Tensor, own: Sequence[Tensor]) -> None:
        """Append a block at `merged` positions of the merged axis and `own[k]` positions of parent k's."""
        number = len(self.blocks)
        self.blocks.append(block if block is not None else nn.Identity())
        self.register_buffer(f"merged{number}", merged.to(self.device), persistent=False)
        for k, positions in enumerate(own):
            self.register_buffer(f"own{number}_{k}", positions.to(self.device), persistent=False)
        self.whole = number == 0 and block is not None and _in_order(merged, self.size)
        self.whole = self.whole and all(_in_order(p, n) for p, n in zip(own, self.sizes, strict=True))

    def to_merged(self, tensor: Tensor, k: int, axis: int) -> Tensor:
        """Carry an axis from parent k's space to the merged one: M_k where it is written, U_kᵀ on a reader's weight."""
        return self._carry(tensor, k, axis, transposed=self.kind == "unmerge", merged=True)

    def to_parent(self, tensor: Tensor, k: int, axis: int) -> Tensor:
        """Carry an activation's axis from the merged space to parent k's: U_k."""
        assert self.kind == "unmerge"
        return self._carry(tensor, k, axis, transposed=False, merged=False)

    def _carry(self, tensor: Tensor, k: int, axis: int, *, transposed: bool, merged: bool) -> Tensor:
        if self.whole:
            block = self.blocks[0]
            assert isinstance(block, Map)
            return block.apply_along(tensor, k, axis, transposed=transposed).to(tensor.dtype)
        moved = tensor.movedim(axis, -1)
        result = moved.new_zeros(*moved.shape[:-1], self.size if merged else self.sizes[k])
        for number, block in enumerate(self.blocks):
            there, here = getattr(self, f"merged{number}"), getattr(self, f"own{number}_{k}")
            target, origin = (there, here) if merged else (here, there)
            part = moved.index_select(-1, origin)
            if isinstance(block, Map):
                part = block.apply_along(part, k, -1, transposed=transposed).to(tensor.dtype)
            result = result.index_copy(-1, target, part)
        return result.movedim(-1, axis)


def _in_order(positions: Tensor, size: int) -> bool:
    return positions.numel() == size and bool((positions == torch.arange(size)).all())
