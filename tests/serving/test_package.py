"""Model repositories for Triton: parsed again, and what they hold run."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from grpc_tools import protoc

from fxmerge.cli.verbs import main
from fxmerge.from_onnx.runtime import onnx_session

X = np.random.default_rng(0).standard_normal((4, 8)).astype("f")


@pytest.fixture(scope="session")
def parse(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Parses the config.pbtxt of an entry by Triton's message."""
    made = tmp_path_factory.mktemp("proto") / "config.desc"
    assert protoc.main(["", f"-I{Path(__file__).parent}", f"--descriptor_set_out={made}", "model_config.proto"]) == 0
    pool = descriptor_pool.DescriptorPool()
    [file] = descriptor_pb2.FileDescriptorSet.FromString(made.read_bytes()).file
    pool.Add(file)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))

    def read(entry: Path) -> Any:
        found = text_format.Parse((entry / "config.pbtxt").read_text(), kind())
        assert found.name == entry.name
        return found

    return read


def sizes(ports: Any) -> list[tuple[str, list[int]]]:
    return [(port.name, list(port.dims)) for port in ports]


def run(file: Path, outputs: list[str], **inputs: Any) -> list[Any]:
    return onnx_session(str(file)).run(outputs, inputs)


def test_tasks_on_one_input_are_ensembles_over_the_model(two_tasks: Any, parse: Any, tmp_path: Path) -> None:
    path, repository = two_tasks(), tmp_path / "repository"
    assert main(["package", str(path), "--triton", str(repository), "--max-batch", "16"]) == 0
    assert sorted(p.name for p in repository.iterdir()) == ["two", "two_a", "two_b"]
    whole, one = parse(repository / "two"), parse(repository / "two_b")
    assert whole.platform == "onnxruntime_onnx" and whole.max_batch_size == one.max_batch_size == 16
    assert whole.dynamic_batching.max_queue_delay_microseconds == 2000
    assert sizes(whole.input) == [("x", [8])] and sizes(whole.output) == [("a.logits", [3]), ("b.logits", [5])]
    [step] = one.ensemble_scheduling.step
    assert step.model_name == "two" and step.model_version == -1 and (repository / "two_b" / "1" / ".keep").is_file()
    for told, mapping, ports in ((one.input, step.input_map, whole.input), (one.output, step.output_map, whole.output)):
        given = {port.name: (port.data_type, list(port.dims)) for port in ports}
        assert mapping and {mapping[p.name]: (p.data_type, list(p.dims)) for p in told}.items() <= given.items()
    file = repository / "two" / "1" / whole.default_model_filename
    assert file.read_bytes() == path.read_bytes()


def test_tasks_with_inputs_of_their_own_are_models_of_their_own(apart: Any, parse: Any, tmp_path: Path) -> None:
    path, repository = apart(), tmp_path / "repository"
    assert main(["package", str(path), "--triton", str(repository)]) == 0
    one = parse(repository / "apart_b")
    assert sizes(one.input) == [("b.x", [8])]
    assert sizes(one.output) == [("b.sum", [1])] and one.output[0].HasField("reshape")  # a number a row
    file = repository / "apart_b" / "1" / one.default_model_filename
    inputs = {"a.x": X, "b.x": X}
    np.testing.assert_allclose(run(file, ["b.sum"], **{"b.x": X})[0], run(path, ["b.sum"], **inputs)[0], rtol=1e-5)
    [logits] = parse(repository / "apart_a").output
    names = (repository / "apart_a" / logits.label_filename).read_text().splitlines()
    assert names == ["bad", 'not "so" bad', "göod"]


def test_weights_beside_the_model_come_along(apart: Any, tmp_path: Path) -> None:
    path, repository = apart(), tmp_path / "repository"
    expected = run(path, ["a.logits"], **{"a.x": X, "b.x": X})[0]
    model = onnx.load(str(path))
    onnx.save(model, str(path), save_as_external_data=True, location=f"{path.name}.data", size_threshold=90)
    assert main(["package", str(path), "--triton", str(repository)]) == 0
    path.with_name("apart.onnx.data").unlink()
    assert (repository / "apart" / "1" / "apart.onnx.data").is_file()
    for entry, inputs in (("apart", {"a.x": X, "b.x": X}), ("apart_a", {"a.x": X})):
        [file] = (repository / entry / "1").glob("*.onnx")
        np.testing.assert_allclose(run(file, ["a.logits"], **inputs)[0], expected, rtol=1e-6)


def test_rows_that_depend_on_each_other_have_no_batches(two_tasks: Any, parse: Any, tmp_path: Path) -> None:
    assert main(["package", str(two_tasks(mixed=True)), "--triton", str(tmp_path / "r")]) == 0
    whole = parse(tmp_path / "r" / "two")
    assert whole.max_batch_size == 0 and not whole.HasField("dynamic_batching")
    assert sizes(whole.input) == [("x", [-1, 8])]


def test_names_are_quoted(tmp_path: Path, apart: Any, parse: Any) -> None:
    path = apart('a "b"\\ü.onnx')
    assert main(["package", str(path), "--triton", str(tmp_path / "r")]) == 0
    assert parse(tmp_path / "r" / path.stem).default_model_filename == path.name


def test_what_is_there_is_replaced_only_when_told(
    two_tasks: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, repository = two_tasks(), tmp_path / "repository"

    def refused(*flags: str) -> str:
        before = sorted(repository.rglob("*"))
        assert main(["package", str(path), "--triton", str(repository), *flags]) == 2
        assert sorted(repository.rglob("*")) == before
        return capsys.readouterr().err

    (repository / "other").mkdir(parents=True)
    assert main(["package", str(path), "--triton", str(repository)]) == 0
    assert "two exists already" in refused()
    assert main(["package", str(path), "--triton", str(repository), "--overwrite"]) == 0
    assert sorted(p.name for p in repository.iterdir()) == ["other", "two", "two_a", "two_b"]
    (repository / "two" / "config.pbtxt").unlink()
    assert "no model of Triton's" in refused("--overwrite")
    path.write_bytes(b"nothing")
    assert "cannot open it" in refused("--overwrite")


def test_a_full_disk_leaves_nothing(
    two_tasks: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    path, repository = two_tasks(), tmp_path / "repository"
    assert main(["package", str(path), "--triton", str(repository)]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and "No space left" in told[0] and not repository.exists()
    repository.mkdir()
    assert main(["package", str(path), "--triton", str(repository)]) == 2 and not list(repository.iterdir())
