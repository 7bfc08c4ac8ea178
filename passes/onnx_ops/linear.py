"""Products of matrices."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxmerge.from_onnx.call import Call, from_onnx


@from_onnx("MatMul")
def matmul(call: Call) -> Tensor:
    """torch's matmul"""
    return torch.matmul(call.tensor(0), call.tensor(1))


@from_onnx("Gemm")
def gemm(call: Call) -> Any:
    """alpha · A B + beta · C; torch's linear where the factors are 1"""
    a, b, c = call.tensor(0), call.tensor(1), call.given(2)
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    a = a.t() if call.get("transA", 0) else a
    if alpha == 1 and (c is None or (beta == 1 and c.ndim == 1 and c.shape[0] == b.shape[0 if _turned(call) else 1])):
        return F.linear(a, b if _turned(call) else b.t(), c)
    product = alpha * torch.matmul(a, b.t() if _turned(call) else b)
    return product if c is None else product + (c if beta == 1 else beta * c)


def _turned(call: Call) -> bool:
    return bool(call.get("transB", 0))


@from_onnx("Einsum")
def einsum(call: Call) -> Any:
    """torch's einsum"""
    return torch.einsum(call.get("equation").replace(" ", ""), *call.tensors())


@from_onnx("com.microsoft.FusedMatMul")
def fused_matmul(call: Call) -> Any:
    """alpha · matmul, either side transposed first"""
    a, b = call.tensor(0), call.tensor(1)
    if call.get("transBatchA", 0) or call.get("transBatchB", 0):
        raise call.refuse("it moves the batch of its operands")
    a = a.mT if call.get("transA", 0) else a
    b = b.mT if call.get("transB", 0) else b
    product = torch.matmul(a, b)
    return product if call.get("alpha", 1.0) == 1 else call.get("alpha") * product


OPERATORS = [matmul, gemm, einsum, fused_matmul]
