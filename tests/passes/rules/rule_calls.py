"""A call of generic sizes for every built-in rule: no two sizes alike, two groups of three, odd numbers."""

from __future__ import annotations

from typing import Any

import torch

from fxmerge.errors import ExtensionError
from fxmerge.rewrite import operator
from fxmerge.testing import Example
from tests.passes.rules.rule_layouts import LAYOUTS
from tests.passes.rules.rule_recurrent import RECURRENT
from tests.passes.rules.rule_values import BITS, OFFSETS, Call, b, i, norm, x, z

PLAIN: dict[str, list[Call]] = {
    **RECURRENT,
    # linear
    "addmm.default": [(z(4), z(5, 3), z(3, 4)), (z(5, 4), z(5, 3), z(3, 4)), (z(1, 4), z(5, 3), z(3, 4))],
    "baddbmm.default": [(z(2, 5, 4), z(2, 5, 3), z(2, 3, 4)), (z(5, 4), z(2, 5, 3), z(2, 3, 4))],
    "matmul.default": [
        (z(3), z(3)),
        (z(5, 3), z(3)),
        (z(3), z(3, 4)),
        (z(5, 3), z(3, 4)),
        (z(2, 5, 3), z(3, 4)),
        (z(7, 1, 5, 3), z(2, 3, 4)),
    ],
    "inner.default": [(z(5, 3), z(2, 4, 3))],
    "vdot.default": [(z(7), z(7))],
    "linalg_vecdot.default": [(z(5, 3), z(5, 3))],
    "tensordot.default": [(z(5, 3, 4), z(4, 2, 3), (1, 2), (2, 0))],
    "cosine_similarity.default": [(z(5, 3, 4), z(5, 3, 4), 1), (z(5, 3, 4), z(5, 3, 4), -1)],
    "cdist.default": [(z(2, 5, 3), z(2, 4, 3)), (z(2, 5, 3), z(2, 4, 3), 1.0)],
    "_cdist_forward.default": [(z(2, 5, 3), z(2, 4, 3), 2.0, None)],
    "_euclidean_dist.default": [(z(5, 3), z(4, 3))],
    "embedding.default": [(z(9, 5), i(9, 3, 4))],
    "embedding_bag.default": [(z(9, 5), i(9, 6), OFFSETS)],
    "embedding_bag.padding_idx": [(z(9, 5), i(9, 6), OFFSETS, False, 0, False, None, False, None)],
    "_embedding_bag.default": [(z(9, 5), i(9, 6), OFFSETS)],
    "_embedding_bag_forward_only.default": [(z(9, 5), i(9, 6), OFFSETS)],
    "einsum.default": [
        ("bhqd,bhkd->bhqk", [z(2, 3, 5, 4), z(2, 3, 7, 4)]),
        ("...i,oi", [z(2, 5, 3), z(4, 3)]),
        ("ii->i", [z(5, 5)]),
        ("bte,eio,bti->bto", [z(2, 5, 3), z(3, 4, 7), z(2, 5, 4)]),
    ],
    # norms and attention
    "layer_norm.default": [(z(3, 2, 5), (5,), z(5), z(5)), (z(3, 2, 5), (2, 5), z(2, 5)), (z(3, 5), (5,))],
    "native_layer_norm.default": [(z(3, 2, 5), (5,), z(5), z(5), 1e-5)],
    "rms_norm.default": [(z(3, 2, 5), (5,), z(5)), (z(3, 2, 5), (5,)), (z(3, 2, 5), (2, 5), z(2, 5))],
    "_fused_rms_norm.default": [(z(3, 2, 5), (5,), z(5), 1e-5)],
    "_native_batch_norm_legit.no_stats": [
        (z(1, 5, 7), x(5), z(5), True, 0.0, 1e-5),
        (z(3, 5, 4, 2), None, None, True, 0.0, 1e-5),
    ],
    "batch_norm.default": [
        (z(3, 5, 4), *norm(5), False, 0.1, 1e-5, False),
        (z(3, 5), None, None, z(5), x(5), False, 0.1, 1e-5, False),
    ],
    "_native_batch_norm_legit_no_training.default": [(z(3, 5, 4, 2), *norm(5), 0.1, 1e-5)],
    "instance_norm.default": [
        (z(3, 5, 7), x(5), z(5), None, None, True, 0.1, 1e-5, False),
        (z(3, 5, 7), *norm(5), False, 0.1, 1e-5, False),
    ],
    "group_norm.default": [
        (z(5, 6, 7), 2, z(6), z(6)),
        (z(5, 6, 7, 4), 3, z(6), z(6)),
        (z(5, 6, 7), 1),
        (z(5, 6, 7), 6),
    ],
    "native_group_norm.default": [(z(5, 6, 7), z(6), z(6), 5, 6, 7, 2, 1e-5)],
    "scaled_dot_product_attention.default": [
        (z(2, 3, 5, 4), z(2, 3, 7, 4), z(2, 3, 7, 6)),
        (z(2, 3, 5, 4), z(2, 3, 7, 4), z(2, 3, 7, 6), z(5, 7)),
        (z(2, 3, 5, 4), z(2, 3, 7, 4), z(2, 3, 7, 6), z(2, 1, 5, 7)),
        (z(2, 3, 5, 4), z(2, 3, 5, 4), z(2, 3, 5, 6), None, 0.0, True),
    ],
    "_scaled_dot_product_flash_attention_for_cpu.default": [(z(2, 3, 5, 4), z(2, 3, 7, 4), z(2, 3, 7, 4))],
    "softmax.int": [(z(5, 3), -1)],
    "_softmax.default": [(z(5, 3), -1, False)],
    "log_softmax.int": [(z(5, 3), 0)],
    "_log_softmax.default": [(z(5, 3), 0, False)],
    "_safe_softmax.default": [(z(5, 3), -1)],
    "special_softmax": [(z(5, 3), -1)],
    "special_log_softmax": [(z(5, 3), -1)],
    # pointwise
    "pow.Tensor_Scalar": [(x(5, 3), 2), (x(5, 3), 3), (x(5, 3), 0.5), (x(5, 3), -1.5)],
    "div.Scalar_mode": [(z(5, 3), 2.0), (z(5, 3), 2.0)],
    "add.Scalar": [(z(5, 3), 1.5), (z(5, 3), 0)],
    "sub.Scalar": [(z(5, 3), 1.5)],
    "subtract.Scalar": [(z(5, 3), 1.5)],
    "rsub.Scalar": [(z(5, 3), 1.5)],
    "add.Tensor": [(z(5, 3), z(5, 3)), (z(5, 3), z(3)), (z(5, 1), z(3)), (z(5, 3), 2.0)],
    "mul.Tensor": [(z(5, 3), z(5, 3)), (z(5, 3), z(3)), (z(5, 1), z(3)), (z(5, 3), 2.0)],
    "div.Tensor": [(z(5, 3), x(5, 3)), (z(5, 3), x(3)), (z(5, 1), x(3)), (z(5, 3), 2.0)],
    "div.Tensor_mode": [(z(5, 3), x(5, 3))],
    "clamp.default": [(z(5, 3), -0.3, 0.4)],
    "clip.default": [(z(5, 3), -0.3, 0.4)],
    "prelu.default": [(z(2, 5, 3), z(5)), (z(2, 5, 3), z(1))],
    "_prelu_kernel.default": [(z(2, 5, 3), z(2, 5, 3)), (z(2, 5, 3), z(1, 5, 1))],
    "where.self": [(b(5, 3), z(5, 3), z(3)), (b(5, 1), z(5, 3), z(5, 3))],
    "where.ScalarSelf": [(b(5, 3), 0.0, z(5, 3)), (b(5, 3), 1.5, z(5, 3))],
    "where.ScalarOther": [(b(5, 3), z(5, 3), 0.0), (b(5, 1), z(5, 3), 1.5)],
    "where.Scalar": [(b(5, 3), 0.0, 1.0)],
    "masked_fill.Scalar": [(z(5, 3), b(5, 3), 0.0), (z(5, 3), b(3), -2.5)],
    "masked_fill.Tensor": [(z(5, 3), b(5, 1), torch.tensor(1.5, dtype=torch.float64))],
    "heaviside": [(z(5, 3), z(5, 3)), (torch.zeros(5, 3).double(), z(3))],
    "bitwise_not": [(i(9, 5, 3),)],
    **{f"{name}.Scalar": [(i(9, 5, 3), 3)] for name in BITS},
    **{f"{name}.Tensor": [(i(9, 5, 3), i(4, 5, 3)), (i(9, 5, 1), i(4, 3))] for name in BITS},
    # reductions
    "sum.dim_IntList": [(z(5, 3, 4), [1]), (z(5, 3, 4), [0, 2], True), (z(5, 3, 4), None)],
    "mean.dim": [(z(5, 3, 4), [1], True)],
    "logsumexp.default": [(z(5, 3, 4), [1])],
    "any.dim": [(b(5, 3), 1)],
    "all.dim": [(b(5, 3), 1)],
    "any.dims": [(b(5, 3, 4), [1, 2])],
    "all.dims": [(b(5, 3, 4), [1, 2])],
    "amax.default": [(z(5, 3, 4), [1])],
    "amin.default": [(z(5, 3, 4), [1], True)],
    "var.dim": [(z(5, 3, 4), [1])],
    "std.dim": [(z(5, 3, 4), [1])],
    "var.correction": [(z(5, 3, 4), [1])],
    "std.correction": [(z(5, 3, 4), [1])],
    "var_mean.correction": [(z(5, 3, 4), [1])],
    "std_mean.correction": [(z(5, 3, 4), [1])],
    "prod.dim_int": [(z(5, 3, 4), 1)],
    "count_nonzero.dim_IntList": [(i(2, 5, 3), [1])],
    "linalg_vector_norm.default": [
        (z(5, 3, 4), 2, [1]),
        (z(5, 3, 4), 2, [1, 2], True),
        (z(5, 3, 4), 1, [1]),
        (z(5, 3, 4), 0, [1]),
    ],
    "norm.ScalarOpt_dim": [(z(5, 3, 4), 2, [1])],
    "norm.ScalarOpt_dim_dtype": [(z(5, 3, 4), 2, [1], False)],
    "norm.Scalar": [(z(5, 3), 2)],
    "frobenius_norm.dim": [(z(5, 3, 4), [1, 2])],
    "linalg_norm.default": [(z(5, 3, 4), None, [1])],
    "max.dim": [(z(5, 3, 4), 1), (z(5, 3, 4), -1, True)],
    "min.dim": [(z(5, 3, 4), 1)],
    "median.dim": [(z(5, 3, 4), 1)],
    "kthvalue.default": [(z(5, 3, 4), 2, 1)],
    "argmax.default": [(z(5, 3), 1), (z(5, 3),)],
    "argmin.default": [(z(5, 3), 1, True)],
    "cumsum.default": [(z(5, 3, 4), 1)],
    "cumprod.default": [(z(5, 3, 4), 1)],
    "logcumsumexp.default": [(z(5, 3, 4), 1)],
    "cummax.default": [(z(5, 3, 4), 1)],
    "cummin.default": [(z(5, 3, 4), 1)],
    "flip.default": [(z(5, 3, 4), [0, 2])],
    "roll.default": [(z(5, 3, 4), [1, 2], [0, 1]), (z(5, 3), [2])],
    "sort.stable": [(z(5, 3),)],
    "sort.default": [(z(5, 3), 0)],
    "argsort.stable": [(z(5, 3),)],
    "topk.default": [(z(5, 7), 3), (z(5, 7), 2, 0)],
    "diff.default": [(z(5, 3, 4), 1, 1)],
    "one_hot.default": [(i(4, 5, 3), 4)],
    "searchsorted.Tensor": [(torch.arange(7.0, dtype=torch.float64), x(5, 3))],
    "bucketize.Tensor": [(x(5, 3), torch.arange(7.0, dtype=torch.float64))],
    "histc.default": [(x(9), 4)],
    "bincount.default": [(i(4, 9),)],
    "sum.default": [(z(5, 3),)],
    "mean.default": [(z(5, 3),)],
    **{
        f"{name}.default": [(z(5, 3),)]
        for name in [
            "nansum",
            "max",
            "min",
            "any",
            "all",
            "prod",
            "var",
            "std",
            "count_nonzero",
            "aminmax",
            "triu",
            "tril",
        ]
    },
    "argsort.default": [(z(5, 3), 0)],
    "msort.default": [(z(5, 3),)],
    "log_sigmoid_forward.default": [(z(5, 3),)],
    "linalg_matmul.default": [(z(2, 5, 3), z(3, 4))],
    # convolutions
    "conv1d.default": [
        (z(2, 6, 9), z(4, 6, 3), z(4)),
        (z(2, 6, 9), z(4, 3, 3), z(4), [1], [0], [1], 2),
        (z(6, 9), z(4, 6, 1)),
    ],
    "conv2d.default": [
        (z(2, 6, 9, 7), z(4, 6, 3, 2), z(4)),
        (z(2, 6, 9, 7), z(10, 3, 3, 2), z(10), [2, 1], [1, 0], [1, 1], 2),
        (z(2, 6, 9, 7), z(6, 1, 3, 3), z(6), [1, 1], [1, 1], [1, 1], 6),
        (z(2, 6, 9, 7), z(4, 6, 1, 1)),
        (z(2, 6, 9, 7), z(4, 6, 1, 1), None, [2, 2]),
    ],
    "conv3d.default": [(z(2, 6, 5, 7, 4), z(4, 6, 3, 2, 2), z(4))],
    "conv1d.padding": [(z(2, 6, 9), z(4, 6, 3), z(4), [1], "same")],
    "conv2d.padding": [(z(2, 6, 9, 7), z(4, 6, 3, 3), z(4), [1, 1], "same")],
    "conv3d.padding": [(z(2, 6, 5, 7, 4), z(4, 6, 3, 2, 2), z(4), [1, 1, 1], "valid")],
    "convolution.default": [
        (z(2, 6, 9, 7), z(4, 3, 3, 2), z(4), [1, 1], [0, 0], [1, 1], False, [0, 0], 2),
        (z(2, 6, 9, 7), z(6, 4, 3, 2), z(8), [2, 1], [0, 0], [1, 1], True, [0, 0], 2),
    ],
    "conv_transpose1d.default": [(z(2, 6, 9), z(6, 4, 3), z(4)), (z(2, 6, 9), z(6, 2, 3), z(6), [2], [0], [0], 3)],
    "conv_transpose2d.input": [
        (z(2, 6, 5, 7), z(6, 4, 3, 2), z(4), [2, 2]),
        (z(2, 6, 5, 7), z(6, 5, 3, 2), z(10), [1, 1], [0, 0], [0, 0], 2),
    ],
    "conv_transpose3d.input": [(z(2, 6, 5, 4, 3), z(6, 4, 3, 2, 2), z(4))],
    "conv_tbc.default": [(z(9, 2, 6), z(3, 6, 4), z(4))],
    "_weight_norm.default": [(z(4, 6, 3), x(4, 1, 1), 0), (z(4, 6, 3), x(1, 1, 3), 2)],
    "grid_sampler.default": [(z(2, 6, 5, 7), z(2, 4, 3, 2).clamp(-1, 1), 0, 0, False)],
    "grid_sampler_2d.default": [(z(2, 6, 5, 7), z(2, 4, 3, 2).clamp(-1, 1), 0, 0, False)],
    "grid_sampler_3d.default": [(z(2, 6, 5, 7, 4), z(2, 4, 3, 2, 3).clamp(-1, 1), 0, 0, False)],
    "adaptive_avg_pool1d": [(z(2, 6, 9), [1]), (z(2, 6, 9), [4])],
    "adaptive_avg_pool2d": [(z(2, 6, 9, 7), [1, 1]), (z(2, 6, 9, 7), [9, 3])],
    "_adaptive_avg_pool2d": [(z(2, 6, 9, 7), [3, 7])],
    "adaptive_avg_pool3d": [(z(2, 6, 9, 7, 4), [1, 2, 4])],
    "_adaptive_avg_pool3d": [(z(2, 6, 9, 7, 4), [1, 2, 4])],
    **{f"{kind}_pool{n}d": [(z(2, 6, *(9, 7, 8)[:n]), [3] * n)] for kind in ("avg", "max") for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": [(z(2, 6, *(9, 7, 8)[:n]), [3] * n)] for n in (1, 2, 3)},
    **{f"adaptive_max_pool{n}d": [(z(2, 6, *(9, 7, 8)[:n]), [2] * n)] for n in (1, 2, 3)},
    **{
        f"{kind}_pad{n}d": [(z(2, 6, *(9, 7, 8)[:n]), [1, 2] * n)]
        for kind in ("reflection", "replication")
        for n in (1, 2, 3)
    },
    **{
        f"{up}": [(z(2, 6, *(9, 7, 8)[:n]), [11, 10, 12][:n])]
        for up, n in (
            ("upsample_nearest1d", 1),
            ("upsample_nearest2d", 2),
            ("upsample_nearest3d", 3),
            ("_upsample_nearest_exact1d", 1),
            ("_upsample_nearest_exact2d", 2),
            ("_upsample_nearest_exact3d", 3),
        )
    },
    **{
        f"{up}": [(z(2, 6, *(9, 7, 8)[:n]), [11, 10, 12][:n], False)]
        for up, n in (
            ("upsample_linear1d", 1),
            ("upsample_bilinear2d", 2),
            ("upsample_bicubic2d", 2),
            ("upsample_trilinear3d", 3),
            ("_upsample_bilinear2d_aa", 2),
            ("_upsample_bicubic2d_aa", 2),
        )
    },
    **LAYOUTS,
}

KEYWORDS: dict[str, dict[str, Any]] = {
    "div.Scalar_mode": {"rounding_mode": None},
    "div.Tensor_mode": {"rounding_mode": "floor"},
    "meshgrid.indexing": {"indexing": "xy"},
    "norm.ScalarOpt_dim_dtype": {"dtype": torch.float64},
    "sort.stable": {"stable": True, "dim": 0},
    "argsort.stable": {"stable": True, "dim": 0},
}

GROUPED = Example(
    "aten.scaled_dot_product_attention.default", (z(2, 6, 5, 4), z(2, 3, 7, 4), z(2, 3, 7, 5)), {"enable_gqa": True}
)
"""Two query heads for each of three key heads."""


def examples(op: str) -> list[Example]:
    """Calls of an operator by its name in a rule; none if its sizes can be made up."""
    name = op.removeprefix("aten.")
    found = [(name, call) for call in PLAIN.get(name, PLAIN.get(f"{name}.default", []))]
    found += [(n, call) for n, calls in PLAIN.items() if n != name and n.rpartition(".")[0] == name for call in calls]
    if name.startswith("transformers.") or name == "_grouped_mm.default":
        return grouped(op)
    made = [
        Example(n if n.startswith("fxmerge.") else f"aten.{n}", call, KEYWORDS.get(n, {}), _constants(call))
        for n, call in found
    ]
    return made + ([GROUPED] if name == "scaled_dot_product_attention.default" else [])


def grouped(op: str) -> list[Example]:
    """Rows in runs, one for each of four experts; none where the operator is not installed or knows no float64."""
    call = (z(9, 5), z(4, 5, 3), torch.tensor([2, 5, 6, 9], dtype=torch.int32))
    try:
        operator(op)(*call)
    except (ExtensionError, RuntimeError, NotImplementedError):
        return []
    return [Example(op, call)]


def _constants(call: Call) -> frozenset[int]:
    return frozenset(position for position, value in enumerate(call) if value is OFFSETS)
