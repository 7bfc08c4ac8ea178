"""Checkpoints as training scripts write them: which weights are taken, what is said, what is refused."""

from __future__ import annotations

from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fxmerge.errors import SourceError, UnsafeFileError
from fxmerge.sources.checkpoint import Checkpoint
from fxmerge.sources.state_dict import read_weights


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(OrderedDict(first=nn.Linear(3, 4), norm=nn.BatchNorm1d(4), last=nn.Linear(4, 2)))
    return model.eval()


TRAINED, AVERAGED = net(1), net(2)
STATE, MEAN = TRAINED.state_dict(), AVERAGED.state_dict()


def under(prefix: str, state: Any = STATE) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def put(value: Any, folder: Path, key: str | None = None, ignored: tuple[str, ...] = (), make: Any = net) -> Any:
    """(the model that the saved value was put into, what was said)."""
    torch.save(value, folder / "a.pt")
    found = read_weights(folder / "a.pt")
    assert isinstance(found, Checkpoint)
    model = make()
    return model, found.choosing(key, ignored).put_into(model, "net.py:build")


def equal(model: nn.Module, state: Any) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("key", ["model_state", "params", "weights", "generator", "net_g", "ema", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "model.", "module.", "_orig_mod.module.", "module.module.", "net._orig_mod."])
def test_any_mapping_and_any_prefix(key: str, prefix: str, tmp_path: Path) -> None:
    optimizer = torch.optim.Adam(TRAINED.parameters()).state_dict()
    value = {"epoch": 3, "optimizer": optimizer, "best": torch.tensor(0.5), key: under(prefix)}
    model, notes = put(value, tmp_path)
    assert equal(model, STATE)
    assert any(
        repr(f"{key}.{prefix.split('.')[0]}" if prefix in ("model.", "net._orig_mod.") else key) in n for n in notes
    )


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.replace("norm.", "norm._orig_mod."),
        lambda name: name.replace("first.", "first._fsdp_wrapped_module.").replace("last.", "last.module."),
        lambda name: f"model.backbone.{name}",
    ],
)
def test_wrappers_anywhere_in_the_names(rename: Callable[[str], str], tmp_path: Path) -> None:
    model, notes = put({rename(name): tensor for name, tensor in STATE.items()}, tmp_path)
    assert equal(model, STATE)
    assert notes


def test_deep_and_plain_layouts(tmp_path: Path) -> None:
    assert put(STATE, tmp_path)[1] == ()
    model, notes = put({"run": {"last": {"net": STATE}}, "step": 3}, tmp_path)
    assert equal(model, STATE)
    assert "'run.last.net'" in notes[0]
    parts = {name: getattr(TRAINED, name).state_dict() for name in ("first", "norm", "last")}
    assert equal(put({**parts, "optimizer": {"state": {}, "param_groups": []}}, tmp_path)[0], STATE)


def test_names_that_a_wrapper_of_the_model_has(tmp_path: Path) -> None:
    """The model is wrapped, the file is not."""
    model, _ = put(STATE, tmp_path, make=lambda: nn.Sequential(OrderedDict(body=net())))
    assert equal(model, under("body."))
    model, _ = put(under("_orig_mod."), tmp_path, make=lambda: nn.DataParallel(net()))
    assert equal(model, under("module."))


def test_a_name_that_is_the_models_own_stays(tmp_path: Path) -> None:
    model, notes = put(under("module."), tmp_path, make=lambda: nn.Sequential(OrderedDict(module=net())))
    assert equal(model, under("module."))
    assert notes == ()


@pytest.mark.parametrize(
    "value",
    [
        {"model": STATE, "ema": MEAN},
        {"model": STATE, "ema": {"module": MEAN}},
        {"model": STATE, "ema": under("module.", MEAN)},
        {**under("model."), **under("ema.", MEAN)},
    ],
)
def test_several_sets_of_weights(value: Any, tmp_path: Path) -> None:
    model, notes = put(value, tmp_path)
    assert equal(model, STATE)
    assert "took the weights under 'model'" in notes[0]
    assert "other weights that fit: 'ema" in notes[1]
    assert "--key" in notes[1]
    model, notes = put(value, tmp_path, key="ema")
    assert equal(model, MEAN)
    assert "took the weights under 'ema" in notes[0]
    with pytest.raises(SourceError, match=r"no weights under 'emma', did you mean 'ema'|no weights under 'emma'"):
        put(value, tmp_path, key="emma")


def test_an_averaged_model_of_torch(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(TRAINED)
    assert equal(put(averaged.state_dict(), tmp_path)[0], STATE)


# -- what torch takes ----------------------------------------------------------------------------------


def test_counters_that_old_files_lack(tmp_path: Path) -> None:
    """torch before 0.4.1 wrote no num_batches_tracked; the version beside the weights tells, as in torch itself."""
    old = {name: tensor for name, tensor in STATE.items() if "num_batches" not in name}
    model, _ = put({"state_dict": under("module.", old)}, tmp_path)
    assert all(torch.equal(model.state_dict()[name], old[name]) for name in old)
    save_file(old, tmp_path / "a.safetensors")
    found = read_weights(tmp_path / "a.safetensors")
    assert isinstance(found, Checkpoint)
    assert found.put_into(net(), "x") == ()
    new = net(1).state_dict()
    del new["norm.num_batches_tracked"]
    with pytest.raises(RuntimeError, match="Missing key"):
        net().load_state_dict(new)
    with pytest.raises(SourceError, match=r"missing: norm\.num_batches_tracked"):
        put(new, tmp_path)


def test_weight_norm_of_either_spelling(tmp_path: Path) -> None:
    with pytest.warns(FutureWarning):
        old = nn.utils.weight_norm(nn.Linear(3, 4))
    model, _ = put(
        {"g": under("body.", old.state_dict())}, tmp_path, make=lambda: parametrizations.weight_norm(nn.Linear(3, 4))
    )
    torch.testing.assert_close(model.weight, old.weight)


def test_tied_tensors_that_are_stored_once(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(OrderedDict(table=nn.Embedding(5, 3), head=nn.Linear(3, 5, bias=False)))
        model.head.weight = model.table.weight
        return model

    torch.manual_seed(3)
    trained = tied()
    save_model(trained, str(tmp_path / "a.safetensors"))
    found, model = read_weights(tmp_path / "a.safetensors"), tied()
    assert isinstance(found, Checkpoint)
    found.put_into(model, "x")
    assert torch.equal(model.head.weight, trained.head.weight)


# -- what does not fit ---------------------------------------------------------------------------------


def test_missing_and_extra_names_have_their_nearest_beside_them(tmp_path: Path) -> None:
    state = {name.replace("first", "frist").replace("last", "lsat"): tensor for name, tensor in STATE.items()}
    with pytest.raises(SourceError) as caught:
        put({"model": under("module.", state)}, tmp_path)
    assert "'frist.weight' for first.weight?" in caught.value.what
    assert "'lsat.weight' for last.weight?" in caught.value.what


def test_a_part_of_a_larger_model_is_refused(tmp_path: Path) -> None:
    layers = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with pytest.raises(SourceError, match=r"not in the model: 1\.weight, 1\.bias"):
        put(layers.state_dict(), tmp_path, make=lambda: nn.Linear(3, 3))
    with pytest.raises(SourceError, match=r"not in the model: head\.weight"):
        put({**under("model."), "head.weight": torch.ones(2, 2)}, tmp_path)


def test_extra_tensors_are_named_and_the_advice_works(tmp_path: Path) -> None:
    counters = {f"{name}.total_{what}": torch.zeros(1) for name in ("first", "last") for what in ("ops", "params")}
    value = {"state_dict": {**under("module."), **counters, "total_ops": torch.zeros(1)}}
    with pytest.raises(SourceError, match=r"not in the model: .*total_ops") as caught:
        put(value, tmp_path)
    patterns = tuple(caught.value.todo.split("--ignore '")[i].split("'")[0] for i in (1, 2))
    model, notes = put(value, tmp_path, ignored=patterns)
    assert equal(model, STATE)
    assert any("ignored 5 tensors: " in note for note in notes)


def test_sizes_that_differ_are_said_whatever_the_layout(tmp_path: Path) -> None:
    state = {**STATE, "last.weight": torch.zeros(7, 4)}
    with pytest.raises(SourceError, match=r"last\.weight has shape \(7, 4\)\nthe model it builds has \(2, 4\)"):
        put({"net": under("module.", state)}, tmp_path)


def test_half_precision_is_said(tmp_path: Path) -> None:
    half = {n: t.half() if t.is_floating_point() else t for n, t in STATE.items()}
    model, notes = put(half, tmp_path)
    assert model.first.weight.dtype == torch.float32
    assert any("half precision" in note for note in notes)


# -- what stands beside the weights --------------------------------------------------------------------


def test_numbers_and_arrays_of_numpy_are_read(tmp_path: Path) -> None:
    beside = {"best": np.float64(0.5), "step": np.int64(3), "done": np.bool_(True), "rng": np.random.get_state()}
    assert equal(put({"model": STATE, **beside}, tmp_path)[0], STATE)


@pytest.mark.parametrize("value", [Namespace(lr=1), np.array([Namespace()], dtype=object), Path("x")])
def test_other_objects_are_refused_by_name(value: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsafeFileError, match=r"is a pickled object: .*execute code") as caught:
        put({"model": STATE, "args": value}, tmp_path)
    if isinstance(value, Namespace):
        assert "argparse.Namespace" in caught.value.what


def test_a_mapping_that_holds_itself(tmp_path: Path) -> None:
    value: dict[str, Any] = {"model": STATE}
    value["again"] = value
    assert equal(put(value, tmp_path)[0], STATE)
