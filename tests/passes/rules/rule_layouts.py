"""Calls of the operators that move, pick and transform along axes."""

from __future__ import annotations

import torch

from tests.passes.rules.rule_values import Call, i, z

LAYOUTS: dict[str, list[Call]] = {
    # layout
    **{
        name: [(z(5, 3, 4), 0, 2)]
        for name in (
            "transpose.int",
            "swapaxes.default",
            "swapdims.default",
            "transpose_copy.int",
            "movedim.int",
            "moveaxis.int",
        )
    },
    **{name: [(z(5, 3, 4), (0, 2), (1, 0))] for name in ("movedim.intlist", "moveaxis.intlist")},
    **{
        name: [(z(5, 3),)]
        for name in (
            "t.default",
            "numpy_T.default",
            "t_copy.default",
            "mT.default",
            "mH.default",
            "adjoint.default",
            "matrix_H.default",
        )
    },
    **{name: [(z(5, 3, 4), (2, 0, 1))] for name in ("permute.default", "permute_copy.default")},
    **{name: [(z(5, 3), 1)] for name in ("unsqueeze.default", "unsqueeze_copy.default")},
    "squeeze": [(z(5, 1, 3),)],
    "squeeze_copy": [(z(5, 1, 3),)],
    **{
        name: [(z(2, 15, 4), (2, 3, 5, 4)), (z(2, 3, 5, 4), (6, 5, 4)), (z(6, 35), (2, 21, 5)), (z(4, 6), (24,))]
        for name in (
            "view.default",
            "reshape.default",
            "_unsafe_view.default",
            "view_copy.default",
            "_reshape_copy.default",
        )
    },
    "flatten.using_ints": [(z(2, 3, 5, 4), 1, 2)],
    "unflatten.int": [(z(2, 15, 4), 1, (3, 5))],
    "reshape_as.default": [(z(2, 15), z(2, 3, 5))],
    "view_as.default": [(z(2, 15), z(2, 3, 5))],
    "ravel.default": [(z(2, 15),)],
    **{
        name: [(z(5, 1, 3), (2, 5, 4, 3))] for name in ("expand.default", "expand_copy.default", "broadcast_to.default")
    },
    "expand_as.default": [(z(5, 1, 3), z(5, 4, 3))],
    "repeat.default": [(z(5, 3), (2, 1, 4))],
    "tile.default": [(z(5, 3), (2, 1, 4))],
    "repeat_interleave.self_int": [(z(5, 3), 2, 1), (z(5, 3), 2)],
    **{
        name: [([z(5, 3, 2), z(5, 4, 2)], 1), ([z(5, 3)], 0)]
        for name in ("cat.default", "concat.default", "concatenate.default")
    },
    "stack.default": [([z(5, 3), z(5, 3)], 1)],
    **{
        name: [([z(5, 3, 2), z(5, 3, 2)],)]
        for name in ("hstack.default", "vstack.default", "dstack.default", "column_stack.default", "row_stack.default")
    },
    "pad.default": [
        (z(5, 3, 4), (1, 2, -1, 0)),
        (z(5, 3, 4), (1, 2), "constant", 1.5),
        (z(5, 3, 4), (1, 2), "reflect"),
    ],
    "constant_pad_nd.default": [(z(5, 3, 4), (1, 2, -1, 0)), (z(5, 3, 4), (1, 2), 1.5)],
    "pixel_shuffle.default": [(z(2, 20, 3, 5), 2)],
    "pixel_unshuffle.default": [(z(2, 5, 6, 10), 2)],
    "channel_shuffle.default": [(z(2, 6, 5, 4), 3)],
    "native_channel_shuffle.default": [(z(2, 6, 5, 4), 3)],
    "im2col.default": [(z(2, 5, 7, 6), [3, 2], [1, 1], [0, 0], [1, 1])],
    "col2im.default": [(z(2, 30, 20), [6, 6], [3, 2], [1, 1], [0, 0], [1, 1])],
    "unfold.default": [(z(5, 12, 3), 1, 4, 4), (z(5, 12, 3), 1, 4, 2), (z(5, 12, 3), 1, 5, 5)],
    "glu.default": [(z(5, 6, 3), 1)],
    "fliplr.default": [(z(5, 3, 4),)],
    "flipud.default": [(z(5, 3, 4),)],
    "rot90.default": [(z(5, 3, 4),)],
    **{
        name: [(z(5),), (z(5, 3),), (z(5, 3, 2),)]
        for name in ("atleast_1d.default", "atleast_2d.default", "atleast_3d.default")
    },
    "meshgrid.default": [([z(5), z(3)],)],
    "meshgrid.indexing": [([z(5), z(3)],)],
    "view_as_real.default": [(torch.complex(z(5, 3), z(5, 3)),)],
    "view_as_complex.default": [(z(5, 3, 2),)],
    **{
        f"{name}.default": [(z(5, 3),)]
        for name in [
            "clone",
            "contiguous",
            "detach",
            "alias",
            "lift_fresh_copy",
            "lift_fresh",
            "real",
            "resolve_conj",
            "resolve_neg",
            "detach_copy",
            "alias_copy",
            "conj",
            "conj_physical",
            "lift",
            "data",
            "cpu",
        ]
    },
    "_conj.default": [(torch.complex(z(5, 3), z(5, 3)),)],
    "_to_copy.default": [(z(5, 3),)],
    "type_as.default": [(z(5, 3), z(5, 3)), (z(5, 3), i(4, 5, 3))],
    "dropout.default": [(z(5, 3), 0.5, False)],
    "feature_dropout.default": [(z(5, 3), 0.5, False)],
    "alpha_dropout.default": [(z(5, 3), 0.5, False)],
    "feature_alpha_dropout.default": [(z(5, 3), 0.5, False)],
    "to.dtype": [(z(5, 3), torch.float64), (z(5, 3), torch.int64)],
    "imag.default": [(torch.complex(z(5, 3), z(5, 3)),)],
    # indexing
    "select.int": [(z(5, 3, 4), 1, 2), (z(5, 3, 4), -1, -1)],
    "select_copy.int": [(z(5, 3, 4), 1, 2)],
    "slice.Tensor": [
        (z(5, 7, 4), 1, 2, 6),
        (z(5, 6, 4), 1, 0, None, 2),
        (z(5, 7, 4), 1, 1, None, 2),
        (z(5, 6, 4), 1, 1, None, 3),
    ],
    "slice_copy.Tensor": [(z(5, 7, 4), 1, 2, -1)],
    "narrow.default": [(z(5, 7, 4), 1, 2, 3)],
    "narrow_copy.default": [(z(5, 7, 4), 1, 2, 3)],
    **{
        name: [(z(5, 7, 4), 3, 1)]
        for name in (
            "split.Tensor",
            "unsafe_split.Tensor",
            "split_copy.Tensor",
            "chunk.default",
            "unsafe_chunk.default",
            "tensor_split.sections",
        )
    },
    **{
        name: [(z(5, 7, 4), (3, 4), 1)]
        for name in (
            "split.sizes",
            "split_with_sizes.default",
            "split_with_sizes_copy.default",
            "unsafe_split_with_sizes.default",
        )
    },
    "tensor_split.indices": [(z(5, 7, 4), (2, 5), 1)],
    "unbind.int": [(z(5, 3, 4), 1)],
    "unbind_copy.int": [(z(5, 3, 4), 1)],
    "diagonal.default": [(z(5, 5, 3),), (z(5, 4, 3),)],
    "linalg_diagonal.default": [(z(3, 5, 5),)],
    "diagonal_copy.default": [(z(5, 5, 3), 1)],
    "slice_scatter.default": [(z(5, 7), z(5, 3), 1, 2, 5), (z(5, 6), z(5, 3), 1, 0, 6, 2)],
    "select_scatter.default": [(z(5, 7), z(5), 1, 2)],
    "copy.default": [(z(5, 3), z(5, 3)), (z(5, 3), z(3))],
    "copy_.default": [(z(5, 3), z(5, 3))],
    **{
        name: [
            (z(5, 7, 4), [None, i(7, 3)]),
            (z(5, 7, 4), [i(5, 3, 2), None, i(4, 3, 1)]),
            (z(5, 7, 4), [i(5, 3), i(7, 3)]),
        ]
        for name in ("index.Tensor", "_unsafe_index.Tensor")
    },
    **{
        name: [
            (z(5, 7, 4), [None, torch.tensor([4, 1, 2])], z(5, 3, 4)),
            (z(5, 7, 4), [None, torch.tensor([4, 1])], z(4)),
        ]
        for name in ("index_put.default", "index_put_.default", "_unsafe_index_put.default")
    },
    "index_select.default": [(z(5, 7, 4), 1, i(7, 3))],
    "take_along_dim.default": [(z(5, 7), i(7, 5, 3), 1), (z(5, 7), i(7, 1, 3), 1), (z(5, 7), i(7, 4))],
    "gather.default": [(z(5, 7, 4), 1, i(7, 5, 3, 4)), (z(5, 7, 4), 1, i(7, 2, 3, 4))],
    "scatter.src": [
        (z(5, 7), 1, torch.tensor([[0, 3]] * 5), z(5, 2)),
        (z(5, 7), 1, torch.tensor([[0, 3]] * 2), z(4, 3)),
    ],
    "scatter.value": [(z(5, 7), 1, torch.tensor([[0, 3]] * 5), 1.5)],
    "scatter_add.default": [(z(5, 7), 1, i(7, 5, 3), z(5, 3))],
    "scatter_reduce.two": [(z(5, 7), 1, i(7, 5, 3), z(5, 3), "sum"), (z(5, 7), 1, i(7, 5, 3), z(5, 3), "amax")],
    "index_add.default": [(z(5, 7), 1, i(7, 3), z(5, 3))],
    "index_copy.default": [(z(5, 7), 1, torch.tensor([4, 0, 2]), z(5, 3))],
    "index_fill.int_Scalar": [(z(5, 7), 1, i(7, 3), 1.5)],
    # spectral
    "_fft_r2c.default": [(z(5, 6, 4), [1], 0, True)],
    "_fft_c2c.default": [(torch.complex(z(5, 6), z(5, 6)), [1], 0, True)],
    "_fft_c2r.default": [(torch.complex(z(5, 4), z(5, 4)), [1], 0, 6)],
    **{
        f"fft_{name}.default": [(z(5, 6, 4),)]
        for name in [
            "fft",
            "ifft",
            "rfft",
            "ihfft",
            "fftn",
            "ifftn",
            "rfftn",
            "fft2",
            "ifft2",
            "rfft2",
            "fftshift",
            "ifftshift",
        ]
    },
    **{
        f"fft_{name}.default": [(torch.complex(z(5, 6, 4), z(5, 6, 4)),)]
        for name in ["irfft", "irfftn", "irfft2", "hfft"]
    },
    "fft_fft2.default": [(z(5, 6, 4), None, [0, 1])],
}
