"""Normalisations that are one operator."""

from __future__ import annotations

from fxmerge.coupling import Call, Moment, couples


def _trailing(count: int) -> str:
    return " ".join(f"d{i}" for i in range(count))


@couples("aten.layer_norm.default", "aten.native_layer_norm.default")
def layer_norm(call: Call) -> tuple[str, str]:
    d = _trailing(len(call["normalized_shape"]))
    more = (", ... " + "1 " * len(d.split())) * (len(call.results) - 1)
    along = d.replace(" ", ", ")
    return f"... {d}, {d}, {d} -> ... {d}{more}", f"isotropic(centred(input, {along}), {along}) * weight + bias"


@couples("aten.rms_norm.default", "aten._fused_rms_norm.default")
def rms_norm(call: Call) -> tuple[str, str]:
    d = _trailing(len(call["normalized_shape"]))
    more = ", ... " + "1 " * len(d.split()) if len(call.results) > 1 else ""
    return f"... {d}, {d} -> ... {d}{more}", f"isotropic(input, {d.replace(' ', ', ')}) * weight"


BATCH_NORM = "(input + running_mean) * rigid(running_var) * weight + bias"
"""In eval mode the statistics are parameters: the input may scale if the mean scales with it and the variance stays."""

STATISTICS: dict[str, tuple[str, Moment]] = {"running_mean": ("input", "mean"), "running_var": ("input", "variance")}


@couples(
    "aten.batch_norm.default",
    "aten._native_batch_norm_legit_no_training.default",
    state=tuple(STATISTICS),
    moments=STATISTICS,
)
def batch_norm(call: Call) -> tuple[str, str]:
    more = ", _" * (len(call.results) - 1)
    law = "rigid(input) * weight + bias" if call["training"] or call["running_mean"] is None else BATCH_NORM
    return f"n c ..., c, c, c, c -> n c ...{more}", law


@couples("aten._native_batch_norm_legit.no_stats")
def batch_norm_by_itself(call: Call) -> tuple[str, str]:
    """Statistics of the operand alone (how a weight is standardized, say), which are results too."""
    return "n c ..., c, c -> n c ..., c, c", "rigid(input + weight + bias)"


@couples("aten.instance_norm.default")
def instance_norm(call: Call) -> tuple[str, str]:
    law = "rigid(input) * weight + bias" if call["use_input_stats"] else BATCH_NORM
    return "n c ..., c, c, c, c -> n c ...", law


@couples("aten.group_norm.default", "aten.native_group_norm.default")
def group_norm(call: Call) -> tuple[str, str]:
    groups = call["num_groups"] or call["group"]
    channels = f"(g={groups} c)" if groups > 1 else "c"
    more = f", n {'g' if groups > 1 else '1'}" * (len(call.results) - 1)
    return f"n {channels} ..., {channels}, {channels} -> n {channels} ...{more}", "rigid(input) * weight + bias"
