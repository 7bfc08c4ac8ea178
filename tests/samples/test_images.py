"""Folders of images: as the model says, as the user says over it, and a message for each way not to fit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from fxmerge.config.image_settings import ImageSettings
from fxmerge.errors import DataError, OptionError
from fxmerge.ir.program import Program
from fxmerge.samples.images import put_settings
from fxmerge.samples.load import Reading, load_samples


def paint(path: Path, value: int, size: tuple[int, int] = (8, 8), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value,) * len(mode)).save(path)


def test_a_folder_of_images(vit: Program, tmp_path: Path) -> None:
    for i in range(3):
        paint(tmp_path / f"{i}.png", 51 * i)
    paint(tmp_path / "3.jpg", 255, (20, 10), "RGB")
    (tmp_path / "readme.txt").write_text("not an image")
    samples = load_samples(tmp_path, vit)
    assert samples.labels is None
    assert torch.allclose(samples.inputs["x"].mean((1, 2, 3)), torch.tensor([0.0, 0.2, 0.4, 1.0]))
    assert f"{tmp_path}: 1 of 4 images were resized to 8 x 8" in samples.notes
    assert any("read as 0..1" in note for note in samples.notes)


def test_sub_folders_are_classes_that_take_turns(vit: Program, tmp_path: Path) -> None:
    for name, count in (("two", 3), ("zero", 1)):
        for i in range(count):
            paint(tmp_path / name / f"{i}.png", 100)
    samples = load_samples(tmp_path, vit, Reading(3))
    assert samples.labels is not None
    assert samples.labels.tolist() == [2, 0, 2]


@pytest.mark.parametrize(
    ("shape", "mode"), [((3, 8, 6), "RGB"), ((8, 6, 3), "RGB"), ((8, 6), "L"), ((8, 6, 4), "RGBA")]
)
def test_images_take_the_shape_of_the_input(shape: tuple[int, ...], mode: str, tmp_path: Path) -> None:
    from fxmerge.capturing import capture

    program = capture(torch.nn.Flatten(), (torch.rand(2, *shape),))
    paint(tmp_path / "a.png", 255, (6, 8), mode)
    assert torch.equal(load_samples(tmp_path, program).inputs["input"], torch.ones(1, *shape))


def test_images_are_scaled_as_the_model_says(vit: Program, tmp_path: Path) -> None:
    paint(tmp_path / "a.png", 255, (32, 16))
    config = {"image_mean": [0.5], "image_std": [0.25], "rescale_factor": 1 / 255, "do_center_crop": True}
    config |= {"size": {"shortest_edge": 10}, "crop_size": {"height": 8, "width": 8}}
    program = vit.evolve(assets={"preprocessor_config.json": json.dumps(config).encode()})
    samples = load_samples(tmp_path, program)
    assert torch.allclose(samples.inputs["x"], torch.full((1, 1, 8, 8), 2.0))


def test_images_are_scaled_as_the_config_of_a_timm_model_says(vit: Program, tmp_path: Path) -> None:
    from fxmerge.sources.bundle import load_bundle, save
    from fxmerge.sources.huggingface import assets_of

    about = {"mean": [0.5], "std": [0.25], "input_size": [1, 8, 8], "crop_pct": 0.5, "interpolation": "bilinear"}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "tiny", "pretrained_cfg": about}))
    pixels = np.zeros((16, 16), dtype=np.uint8)
    pixels[4:12, 4:12] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    samples = load_samples(tmp_path, vit.evolve(assets=assets_of(tmp_path)))
    assert torch.allclose(samples.inputs["x"], torch.full((1, 1, 8, 8), 2.0))
    assert samples.notes[0] == f"{tmp_path}: resized, cropped and scaled as the model's own preprocessing says"
    model = torch.nn.Flatten()
    model.pretrained_cfg = about  # type: ignore[assignment]
    save(model, tmp_path / "a.pt", inputs=(torch.rand(2, 1, 8, 8),))
    assert float(load_samples(tmp_path, load_bundle(tmp_path / "a.pt")).inputs["input"].mean()) == pytest.approx(2.0)
    for wrong in ({"crop_mode": "squash"}, {"std": None}, {"input_size": [8]}, {"mean": "0.5"}, {"mean": [0.5, 0.5]}):
        (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": about | wrong}))
        assert "preprocessor_config.json" not in assets_of(tmp_path)


def test_images_that_do_not_fit(vit: Program, gpt: Program, tmp_path: Path) -> None:
    paint(tmp_path / "a.png", 1)
    with pytest.raises(
        DataError, match=r"is a folder of images, but plays takes input_ids \(batch, sequence\)\ngive arrays"
    ):
        load_samples(tmp_path, gpt)
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png cannot be read: it has more than 8 bits a colour: save it with 8"):
        load_samples(tmp_path, vit, Reading(strict=True))
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"b\.png cannot be read: .*\nremove or repair that image"):
        load_samples(tmp_path, vit, Reading(strict=True))


def test_an_image_bomb_is_refused(vit: Program, tmp_path: Path) -> None:
    Image.new("1", (10_000, 9_000)).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 1 << 16
    with pytest.raises(DataError, match=r"a\.png cannot be read: Image size \(90000000 pixels\) exceeds limit"):
        load_samples(tmp_path, vit)


def test_a_picture_that_calls_a_program_is_not_opened(vit: Program, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match=r"a\.png cannot be read: it is no picture of a format that is opened"):
        load_samples(tmp_path, vit)


# -- images as the user says ---------------------------------------------------------------------------


def halves(path: Path) -> None:
    """A picture that is white in its middle third alone."""
    pixels = np.zeros((8, 24), dtype=np.uint8)
    pixels[:, 8:16] = 255
    Image.fromarray(pixels).save(path)


def said(program: Program, **given: str) -> Program:
    return put_settings(program, ImageSettings.of({name: {"": text} for name, text in given.items()}, "a"))


def test_images_are_read_as_the_user_says(vit: Program, tmp_path: Path) -> None:
    halves(tmp_path / "a.png")
    plain = float(load_samples(tmp_path, vit).inputs["x"].mean())
    assert plain == pytest.approx(1 / 3, abs=0.02)
    cut = said(vit, image_size="8", image_mean="0.5", image_std="0.25")
    assert torch.allclose(load_samples(tmp_path, cut).inputs["x"], torch.full((1, 1, 8, 8), 2.0))
    assert float(load_samples(tmp_path, said(vit, image_size="8")).inputs["x"].mean()) == 1  # bytes, 0..1
    stretched = said(cut, image_size="8x8")
    assert float(load_samples(tmp_path, stretched).inputs["x"].mean()) == pytest.approx(4 * plain - 2, abs=1e-3)
    inner = said(vit, image_size="16x72", image_crop="8")
    assert float(load_samples(tmp_path, inner).inputs["x"].mean()) == 1


def test_what_the_user_says_is_said_over_the_models_own(vit: Program, tmp_path: Path) -> None:
    halves(tmp_path / "a.png")
    own = {"image_mean": [0.0], "image_std": [1.0], "do_center_crop": True, "size": {"shortest_edge": 8}}
    program = vit.evolve(assets={"preprocessor_config.json": json.dumps(own).encode()})
    assert float(load_samples(tmp_path, program).inputs["x"].mean()) == 1
    assert float(load_samples(tmp_path, said(program, image_std="0.5")).inputs["x"].mean()) == 2
    assert float(load_samples(tmp_path, said(program, image_size="16")).inputs["x"].mean()) == 1


def test_a_model_of_another_size_gets_the_same_share(vit: Program, tmp_path: Path) -> None:
    halves(tmp_path / "a.png")
    own = {"do_center_crop": True, "size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    program = vit.evolve(assets={"preprocessor_config.json": json.dumps(own).encode()})
    assert float(load_samples(tmp_path, program).inputs["x"].mean()) == 1


def test_free_sides_are_as_the_user_says(tmp_path: Path) -> None:
    from fxmerge.capturing import capture

    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    program = capture(net, (torch.rand(2, 3, 16, 16),), dynamic=("height", "width"))
    paint(tmp_path / "a.png", 255, (40, 20), "RGB")
    with pytest.raises(DataError, match=r"takes input \(batch, 3, "):
        load_samples(tmp_path, program)
    assert load_samples(tmp_path, said(program, image_size="12")).inputs["input"].shape == (1, 3, 12, 12)
    assert load_samples(tmp_path, said(program, image_size="12", image_crop="8x10")).inputs["input"].shape[2:] == (
        8,
        10,
    )


def test_what_cannot_be_said_of_images(vit: Program) -> None:
    for given, match in (
        ({"image_size": "big"}, "--image-size big is no size in pixels"),
        ({"image_crop": "4x4x4"}, "is no size in pixels"),
        ({"image_mean": "0.5"}, "--image-mean without --image-std"),
        ({"image_mean": "0.5", "image_std": "0"}, "--image-std 0 are no numbers of colours"),
        ({"image_mean": "0.5,0.5", "image_std": "1"}, "--image-mean has 2 numbers, and .* takes 1 colours"),
        ({"image_crop": "9"}, "--image-crop 9x9: .* takes 8 x 8"),
    ):
        with pytest.raises(OptionError, match=match):
            said(vit, **given)


def test_a_timm_architecture_reads_images_as_its_config_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fxmerge.sources.load import load

    about = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.2], "input_size": (3, 32, 32), "crop_pct": 0.5}

    def create_model(name: str, pretrained: bool, num_classes: int) -> torch.nn.Module:
        pool = torch.nn.AdaptiveAvgPool2d(1)
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), pool, torch.nn.Flatten(), torch.nn.Linear(4, num_classes))
        net.pretrained_cfg = about  # type: ignore[assignment]
        return net

    timm = ModuleType("timm")
    timm.create_model, timm.list_models = create_model, lambda: ["tiny"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    torch.save(create_model("tiny", False, 4).state_dict(), tmp_path / "a.pth")
    program = load(tmp_path / "a.pth", arch="timm:tiny")
    config = json.loads(program.assets["preprocessor_config.json"])
    assert config["image_mean"] == about["mean"]
    assert config["size"] == {"shortest_edge": 64}
    assert program.inputs[0].shape[1:] == (3, 32, 32)
    paint(tmp_path / "images" / "a.png", 255, (9, 9), "RGB")
    white = load_samples(tmp_path / "images", program).inputs["input"][0, :, 0, 0]
    assert torch.allclose(white, torch.tensor([3.0, 2.5, 2.0]))
    smaller = load(tmp_path / "a.pth", arch="timm:tiny", images=ImageSettings(size=(24,)))
    assert smaller.inputs[0].shape[1:] == (3, 24, 24)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.25], "image_std": [1]}))
    own = load(tmp_path / "a.pth", arch="timm:tiny")
    assert json.loads(own.assets["preprocessor_config.json"])["image_mean"] == [0.25]
