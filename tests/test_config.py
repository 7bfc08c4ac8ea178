"""Options from flags, YAML and Python are one checked value; mistakes name the nearest option."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from fxmerge.compiler.state_folder import state_folder
from fxmerge.config import MergeConfig, parse_data
from fxmerge.errors import OptionError, OutputError
from fxmerge.messages import unknown
from fxmerge.output.onnx import OPSETS
from fxmerge.pipeline.format import check_suffix


def test_defaults_are_those_of_the_interface() -> None:
    config = MergeConfig()
    assert (config.method, config.init, config.like, config.seed) == ("auto", "auto", 0, 0)
    assert (config.device, config.dtype) == ("auto", "float32")


def test_yaml_and_back(tmp_path: Path) -> None:
    config = MergeConfig.of(parents=["a.pt", "b.pt"], out="m.onnx", data={"a": "x.npz"}, rank=3, width_scale=1.5)
    config.save(tmp_path / "merge.yaml")
    assert MergeConfig.load(tmp_path / "merge.yaml") == config
    assert yaml.safe_load((tmp_path / "merge.yaml").read_text())["rank"] == 3


def test_every_option_can_stand_in_a_file(tmp_path: Path) -> None:
    MergeConfig().save(tmp_path / "all.yaml")
    assert set(yaml.safe_load((tmp_path / "all.yaml").read_text())) == set(MergeConfig.model_fields)


def test_flags_override_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("steps: 10\nseed: 3\n")
    config = MergeConfig.load(tmp_path / "c.yaml", seed=4)
    assert (config.steps, config.seed) == (10, 4)


def test_options_replace_and_are_checked() -> None:
    config = MergeConfig.of(steps=10).with_options(seed=2)
    assert (config.steps, config.seed) == (10, 2)
    with pytest.raises(OptionError, match="--seed -1"):
        config.with_options(seed=-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metod": "average"}, r"unknown option 'metod', did you mean 'method'\?"),
        ({"bach_size": 3}, r"unknown option 'bach_size', did you mean 'batch_size'\?"),
        ({"steps": -1}, r"--steps -1: input should be greater than or equal to 0"),
        ({"batch_size": 0}, r"--batch-size 0: input should be greater than or equal to 1"),
        ({"device": "cdua"}, r"--device cdua: .*did you mean 'cuda'\?"),
        ({"dtype": "float23"}, r"--dtype float23: .*did you mean 'float32'\?"),
        (
            {"augment": "bogus"},
            r"--augment bogus: no such choice\n.*one of auto, none, image, tokens, vector, written;",
        ),
        ({"augment": None}, r"--augment null: no such choice, did you mean 'none'\?"),
        ({"augment": False}, r"--augment false: no such choice, did you mean 'none'\?"),
        ({"metric": {"a": "clases"}}, r"--metric a=clases: no such choice, did you mean 'classes'\?"),
        ({"like": "a"}, r"--like a: input should be a valid integer"),
        ({"width_scale": float("nan")}, r"--width-scale nan"),
        ({"opset": 7}, r"--opset 7: input should be greater than or equal to 18"),
        ({"atol": 0}, r"--atol 0: input should be greater than 0"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        MergeConfig.of(**options)
    assert caught.value.todo


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stpes: 3", r"unknown option 'stpes', did you mean 'steps'\?"),
        ("steps: [", "is no valid YAML"),
        ("- steps", "is no table of options"),
        ("1: 2", "is no table of options"),
        ("!!python/object/apply:os.system ['true']", "is no valid YAML"),
    ],
)
def test_wrong_files(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(OptionError, match=message):
        MergeConfig.load(tmp_path / "c.yaml")


def test_empty_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("")
    assert MergeConfig.load(tmp_path / "c.yaml") == MergeConfig()
    with pytest.raises(OptionError, match="no such file"):
        MergeConfig.load(tmp_path / "none.yaml")


def test_data_by_task() -> None:
    assert parse_data(["mnist=a.npz", "b.npz"]) == {"mnist": "a.npz", "": "b.npz"}
    assert parse_data(["runs/x=1/a.npz", "t=x=1.npz"]) == {"": "runs/x=1/a.npz", "t": "x=1.npz"}
    assert MergeConfig.of(data="a.npz").data == {"": "a.npz"}
    with pytest.raises(OptionError, match="given twice for mnist"):
        parse_data(["mnist=a.npz", "mnist=b.npz"])
    with pytest.raises(OptionError, match="names no file"):
        parse_data(["mnist="])
    with pytest.raises(OptionError, match="names no task"):
        parse_data(["=a.npz"])


def test_parents_and_like() -> None:
    with pytest.raises(OptionError, match=r"two models or more, and there is only a\.pt"):
        MergeConfig.of(parents=["a.pt"]).check_parents()
    with pytest.raises(OptionError, match=r"--like 7 of 2 parents\nchoose one from 0 to 1"):
        MergeConfig.of(parents=["a.pt", "b.pt"], like=7).check_parents()


def test_outputs_are_checked_together(tmp_path: Path) -> None:
    out = str(tmp_path / "m.onnx")
    MergeConfig.of(out=out).check_outputs()
    assert not list(tmp_path.iterdir())
    with pytest.raises(OptionError, match="--out is missing"):
        MergeConfig().check_outputs()
    MergeConfig.of(dry_run=True).check_outputs()
    with pytest.raises(OptionError, match="is --out too"):
        MergeConfig.of(out=out, result=out).check_outputs()
    with pytest.raises(OptionError, match="is a parent too"):
        MergeConfig.of(out=str(tmp_path / "a.pt"), parents=[str(tmp_path / "a.pt"), "b.pt"]).check_outputs()
    with pytest.raises(OutputError, match="does not exist"):
        MergeConfig.of(out=str(tmp_path / "none" / "m.onnx")).check_outputs()
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(OutputError, match="exists already"):
        MergeConfig.of(out=out, result=str(tmp_path / "r.json")).check_outputs()
    MergeConfig.of(out=out, result=str(tmp_path / "r.json"), overwrite=True).check_outputs()


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="a device or a pipe, which nothing may replace"):
        MergeConfig.of(out=str(tmp_path / "pipe"), overwrite=True).check_outputs()


def test_suffixes() -> None:
    for good in ("m.onnx", "m.pt2", "m.safetensors", "folder"):
        check_suffix(good)
    with pytest.raises(OptionError, match=r"'\.onx' cannot be written, did you mean '\.onnx'\?"):
        check_suffix("m.onx")


def test_operator_sets_agree_with_the_exporter() -> None:
    for opset in (OPSETS.start, OPSETS.stop - 1):
        assert MergeConfig.of(opset=opset).opset == opset
    for opset in (OPSETS.start - 1, OPSETS.stop):
        with pytest.raises(OptionError):
            MergeConfig.of(opset=opset)


def test_unknown_names_the_nearest() -> None:
    assert "did you mean 'average'?" in str(unknown("method", "avarage", ["average", "foldable"]))


def test_state_folder(tmp_path: Path) -> None:
    config, said = MergeConfig.of(out=str(tmp_path / "m.onnx")), []
    folder = tmp_path / "m.onnx.state"
    with state_folder(config, said.append) as used:
        assert used.resume == str(folder)
        folder.mkdir()
    assert not folder.exists()
    with state_folder(config, said.append):
        folder.mkdir()
        (folder / "training.pt").write_text("state")
    assert folder.exists()
    with state_folder(config.with_options(resume=str(folder)), said.append):
        assert (folder / "training.pt").exists()
    assert said == []
    with state_folder(config, said.append):
        assert not (folder / "training.pt").exists()
    assert len(said) == 1
    with (
        pytest.raises(OptionError, match="no state of an interrupted merge"),
        state_folder(config.with_options(resume=str(tmp_path)), said.append),
    ):
        pass


def test_the_options_are_a_file_and_a_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fxmerge.cli.verbs import main

    assert main(["config", "--out", str(tmp_path / "merge.yaml")]) == 0
    text = (tmp_path / "merge.yaml").read_text()
    assert "# Training steps" in text
    assert MergeConfig.load(tmp_path / "merge.yaml", parents=("a.pt", "b.pt")).of_method() == {}
    assert main(["config", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) == set(MergeConfig.model_fields)
    assert schema["properties"]["seed"]["minimum"] == 0
    assert schema["additionalProperties"] is False
