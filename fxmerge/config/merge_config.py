"""Every option of a merge as one checked value: from flags, from YAML, from Python, and back."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from fxmerge.config.image_settings import IMAGE_OPTIONS, ImageSettings, spelled
from fxmerge.config.values import as_names, as_texts, read_options
from fxmerge.errors import OptionError
from fxmerge.io.files import check_output, try_writing, write_text
from fxmerge.messages import nearest, printable, unknown

BY_TASK = ("arch", "data", "key", "metric", *IMAGE_OPTIONS)
"""Options that may be given once per task, as `--data TASK=PATH`."""

LISTED = ("post",)
"""Options that take several names at once, with commas between them."""

EXCLUDING: tuple[tuple[tuple[str, ...], str], ...] = (
    (("like", "width_scale"), "one takes a parent's shape, the other makes the first one wider"),
    (("share_until", "max_size", "keep"), "each says where the trunk ends"),
    (("rank", "full"), "dense maps have no rank"),
    (("steps", "budget"), "each says how long to train"),
    (("polish", "budget"), "each says how long to train"),
)
"""Options of which one at most may be given, and why."""


def option(default: Any, text: str, group: str, *, metavar: str = "", of_method: bool = False, **limits: Any) -> Any:
    """A field that is also a flag: `text` is its help, `group` the heading it stands under.

    One that is `of_method` is an option of the method, which may have it or not.
    """
    extra: dict[str, Any] = {"group": group, "metavar": metavar, "of_method": of_method}
    return Field(default, description=text, json_schema_extra=extra, **limits)


class MergeConfig(BaseModel):
    """Options of `fxmerge merge`, field by flag: `--batch-size 32` is `batch_size: 32` in YAML and in Python.

    Paths in a file are taken from the working directory, as flags are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, allow_inf_nan=False)
    # blocks and tasks may be named by numbers

    parents: tuple[str, ...] = option((), "Models to merge, two or more.", "argument", metavar="SOURCE SOURCE...")
    arch: dict[str, str] = option(
        {}, "What builds the model of a state dict: module:callable, file.py:callable, timm:NAME, torchvision:NAME or "
        "config.json. With TASK= for that parent alone.",
        "Files", metavar="[TASK=]FACTORY",
    )  # fmt: skip
    key: dict[str, str] = option(
        {}, "Which weights of a checkpoint are meant, where it holds several (raw and averaged).", "Files",
        metavar="[TASK=]NAME",
    )  # fmt: skip
    ignore: tuple[str, ...] = option(
        (), "Tensors of a checkpoint that are no weights, as '*.total_ops'; may be given again.", "Files",
        metavar="PATTERN",
    )  # fmt: skip
    allow_pickle: bool = option(False, "Run the code inside a pickled module. Only for files you trust.", "Files")

    out: str | None = option(
        None,
        "Where the merged model goes: .onnx, .pt2, .pt (bundle), .safetensors, or a folder (Hugging Face).",
        "Files",
    )
    data: dict[str, str] = option(
        {}, "Unlabeled samples of a task, once per task; without TASK= they serve every task.", "Files",
        metavar="[TASK=]PATH",
    )  # fmt: skip
    strict_data: bool = option(
        False, "Stop at a broken file or row of samples; else it is left out, counted and named.", "Files"
    )
    image_size: dict[str, str] = option(
        {}, "What images are resized to: their shorter side (256), whose middle is taken, or both (256x256). This "
        "and the next three are said in place of the model's own preprocessing.", "Files", metavar="[TASK=]N|HxW",
    )  # fmt: skip
    image_crop: dict[str, str] = option(
        {}, "What is cut out of the middle of resized images (default: as much as the model takes).", "Files",
        metavar="[TASK=]N|HxW",
    )  # fmt: skip
    image_mean: dict[str, str] = option(
        {}, "Mean that is taken off colours from 0 to 1: one number, or one for each, as 0.485,0.456,0.406.", "Files",
        metavar="[TASK=]X,X,X",
    )  # fmt: skip
    image_std: dict[str, str] = option(
        {}, "Deviation that colours are divided by, after the mean was taken off.", "Files", metavar="[TASK=]X,X,X"
    )  # fmt: skip
    result: str | None = option(None, "Write figures and checks as JSON.", "Files", metavar="FILE")
    report: str | None = option(None, "Write a self-contained HTML report.", "Files", metavar="FILE")
    log: str | None = option(
        None, "Write loss, held-back score and stages as they come: JSON lines in a .jsonl, or a folder for "
        "TensorBoard.", "Files", metavar="FILE|DIR",
    )  # fmt: skip
    resume: str | None = option(None, "Continue an interrupted merge from its state.", "Files", metavar="DIR")
    overwrite: bool = option(False, "Replace outputs that exist.", "Files")

    method: str = option(
        "auto", "How M and U are found; `fxmerge methods` lists them. Options may follow: name{rank=12}.", "Method"
    )
    init: str = option(
        "auto", "What a trained method starts from: condense, permute, average, first, parent1, …; several joined "
        "by +, or auto.", "Method",
        of_method=True,
    )  # fmt: skip
    on: Literal["auto", "activations", "weights"] = option(
        "auto", "What units of the parents are compared by: activations on samples, or weights, which needs none.",
        "Method", of_method=True,
    )  # fmt: skip
    rank: int | None = option(
        None, "Rank of M and U beside their diagonals, 0 for none (default: dense in narrow models, else 12).",
        "Method", ge=0, of_method=True,
    )  # fmt: skip
    full: bool = option(False, "Dense M and U.", "Method", of_method=True)
    base: str | None = option(
        None, "The model that the parents were fine-tuned from, a file or folder like theirs.", "Method",
        metavar="SOURCE", of_method=True,
    )  # fmt: skip
    like: int = option(0, "The parent whose shape the merged model has, counted from 0.", "Method", ge=0)
    width_scale: float | None = option(None, "Make every merged width this many times larger.", "Method", gt=0, le=64)
    share_until: str | None = option(
        None, "The last block that the parents share, by its name or number (`fxmerge inspect` lists them): what "
        "follows it stays as it is, once for every task. 'input' shares nothing.", "Method", metavar="BLOCK",
    )  # fmt: skip
    max_size: float | None = option(
        None, "Keep blocks apart as far as the model has at most so many times the parameters of one parent; which "
        "ones is measured on held-back samples.", "Method", metavar="X", ge=1,
    )  # fmt: skip
    keep: float | None = option(
        None, "The smallest model of which every task agrees with its parent on this share of held-back samples (R² "
        "of outputs that are no class scores).", "Method", metavar="X", gt=0, le=1,
    )  # fmt: skip
    curve: bool = option(
        False, "Merge at a handful of sizes too, and say in the result and the report what each keeps.", "Method"
    )
    gate: bool = option(
        False, "Add an output `task`: which task a row belongs to, for whoever does not know.", "Method"
    )
    answer: Literal["none", "choose", "mix"] = option(
        "none", "With --gate, one more output for whoever does not know the task, called as the parents call theirs: "
        "the likeliest task's (choose), or all tasks' weighed by the gate (mix), where they have one shape.", "Method",
    )  # fmt: skip
    augment: Literal["auto", "none", "image", "tokens", "vector", "written"] = option(
        "auto", "How unlabeled samples are varied; auto fits the kind of input.", "Method", of_method=True
    )
    pool: int | None = option(None, "Samples a task after augmentation.", "Method", ge=1, of_method=True)
    inner: float = option(0.0, "Weight of the inner layers' loss.", "Method", ge=0, of_method=True)
    extension: tuple[str, ...] = option(
        (), "Load rules, passes and methods from a Python file; may be given again.", "Method", metavar="FILE:NAME"
    )
    batch_axis: int | None = option(
        None, "Axis of the arrays that counts the rows, where a model takes its batch on another axis than the first "
        "(default: found).", "Method", ge=0,
    )  # fmt: skip
    steps: int | None = option(
        None, "Training steps (default 2500 of auto, 600 of other methods).", "Training", ge=0, of_method=True
    )
    polish: int | None = option(
        None, "Steps of training after the fold; with 0 the closed form is the result.", "Training", ge=0,
        metavar="N", of_method=True,
    )  # fmt: skip
    budget: float | None = option(
        None, "Seconds that trials and training may take together, in place of a number of steps.", "Training",
        metavar="SECONDS", gt=0, of_method=True,
    )  # fmt: skip
    optimizer: Literal["auto", "adamw", "muon"] = option(
        "auto", "AdamW, or Muon, which steps matrices alike in all directions; auto tries both.", "Training",
        of_method=True,
    )  # fmt: skip
    loss: Literal["auto", "features"] = option(
        "auto", "What is compared with the parents: final features, or (auto) what fits the kind of each output.",
        "Training", of_method=True,
    )  # fmt: skip
    batch_size: int | None = option(
        None, "Samples a training step (default 64, of language models 32).", "Training", ge=1, of_method=True
    )
    lr: float | None = option(
        None, "Peak learning rate (default: tried by auto, else 0.003).", "Training", gt=0, of_method=True
    )
    weight_decay: float | None = option(
        None, "Weight decay of matrices (default 0.001).", "Training", ge=0, of_method=True
    )
    seed: int = option(0, "Same seed, same machine: the same model, bit for bit.", "Training", ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "Where to train.", "Training")
    dtype: Literal["float32", "bfloat16"] = option("float32", "Precision of training.", "Training", of_method=True)
    post: tuple[Literal["repair", "batchnorm", "temperature"], ...] = option(
        (), "Steps behind the merge, in the order given: repair (mean and spread of units as in the parents), "
        "batchnorm (running statistics computed anew), temperature (one for every output of class scores).",
        "Training", metavar="STEP,STEP",
    )  # fmt: skip
    memory: float | None = option(
        None, "Memory for samples and the parents' features, in GiB (default a quarter of what is free); what does "
        "not fit is made again when it is read.", "Training", metavar="GIB", gt=0, le=1 << 20,
    )  # fmt: skip
    opset: int | None = option(None, "ONNX operator set, 18 to 23 (default 20).", "Checks", ge=18, le=23)
    atol: float = option(1e-4, "Largest difference that the checks of the merged model accept.", "Checks", gt=0)
    metric: dict[str, Literal["auto", "classes", "regression", "none"]] = option(
        {}, "What outputs are: auto, classes, regression or none; of all tasks, of a TASK, or of TASK.OUTPUT.",
        "Checks", metavar="[TASK=]KIND",
    )  # fmt: skip
    dry_run: bool = option(False, "Line the parents up and show the plan; train and write nothing.", "Checks")

    def check_options(self) -> None:
        """Raise `OptionError` for two options of which one would be without effect."""
        check_excluding(EXCLUDING, [name for name in MergeConfig.model_fields if self.given(name)])
        if self.answer != "none" and not self.gate:
            raise OptionError(f"--answer {self.answer} needs the gate that says the task", "give --gate too")
        if self.log is not None and Path(self.log).suffix not in ("", ".jsonl"):
            raise OptionError(
                f"--log {self.log}: {Path(self.log).suffix!r} cannot be written",
                "end it in .jsonl, or in nothing for a folder that TensorBoard reads",
            )
        for task in {task for name in IMAGE_OPTIONS for task in getattr(self, name)}:
            self.images(task)
        if self.opset is not None and self.out is not None and Path(self.out).suffix != ".onnx":
            raise OptionError(f"--opset {self.opset} is of ONNX, and --out is {self.out}", "end --out in .onnx")

    @model_validator(mode="before")
    @classmethod
    def _paths(cls, values: Any) -> Any:
        """A path may be a `Path`, one value alone of what is given by task serves every task, one pattern is a list."""
        if not isinstance(values, dict):
            return values
        values = {name: as_texts(value) for name, value in values.items()}
        values |= {name: spelled(values[name]) for name in IMAGE_OPTIONS if name in values}
        one = {name: {"": values[name]} for name in BY_TASK if isinstance(values.get(name), str)}
        several = {name: (values[name],) for name in ("ignore", "extension") if isinstance(values.get(name), str)}
        listed = {name: as_names(values[name]) for name in LISTED if values.get(name) is not None}
        return values | one | several | listed

    @classmethod
    def of(cls, **options: Any) -> MergeConfig:
        """The config of these options. Raises `OptionError` naming the nearest option for an unknown one."""
        try:
            return cls(**options)
        except ValidationError as error:
            raise _explain(error) from None

    def with_options(self, **options: Any) -> MergeConfig:
        """This config with some options replaced, and the whole checked again."""
        if not options:
            return self
        return MergeConfig.of(**{**self.model_dump(exclude_unset=True), **options})

    @classmethod
    def load(cls, path: str | Path, **flags: Any) -> MergeConfig:
        """The config in a YAML file, with `flags` in place of what it says.

        A file that `save` wrote holds every option: one with its default value counts as not given. Of options that
        exclude each other, a flag replaces what the file says of the others.
        """
        file = cls.of(**read_options(Path(path))).model_dump(exclude_defaults=True)
        for names, _ in EXCLUDING:
            if flags.keys() & set(names):
                file = {name: value for name, value in file.items() if name not in names}
        return cls.of(**{**file, **flags})

    def given(self, name: str) -> bool:
        """Whether an option was asked for, if only by its default value."""
        value = getattr(self, name)
        return name in self.model_fields_set and value is not None and value is not False

    def of_method(self) -> dict[str, Any]:
        """The options that were given and that the method must have."""
        names = [n for n, field in MergeConfig.model_fields.items() if _extra(field)["of_method"]]
        return {name: getattr(self, name) for name in names if self.given(name)}

    def images(self, task: str) -> ImageSettings:
        """How the images of a task are read, as far as the options say. Raises `OptionError`."""
        return ImageSettings.of({name: getattr(self, name) for name in IMAGE_OPTIONS}, task)

    def asked(self, sources: Iterable[str | None] = ()) -> dict[str, Any]:
        """What differs from the defaults, as a file for `load` says it; the parents by `sources` where all have one."""
        found = self.model_dump(mode="json", exclude_defaults=True, exclude={"resume", "log"})
        named = list(sources)
        return {"parents": named, **found} if named and None not in named else found

    def save(self, path: str | Path) -> None:
        """Write the config as YAML that `load` reads back; to have asked for a plan is no part of it."""
        values = {**self.model_dump(mode="json"), "dry_run": False}
        write_text(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    def check_parents(self) -> None:
        """Raise `OptionError` unless there are two parents and `like` is one of them."""
        if len(self.parents) < 2:
            given = f"only {self.parents[0]}" if self.parents else "none"
            raise OptionError(
                f"merging needs two models or more, and there is {given}", "fxmerge merge a.pt b.pt --out merged.onnx"
            )
        if self.like >= len(self.parents):
            raise OptionError(
                f"--like {self.like} of {len(self.parents)} parents", f"choose one from 0 to {len(self.parents) - 1}"
            )

    def check_outputs(self) -> None:
        """Raise `OptionError` or `OutputError` if one of the outputs cannot be written. Creates nothing."""
        if self.out is None and not self.dry_run:
            raise OptionError("--out is missing", "add --out merged.onnx")
        self.check_files()

    def check_compared(self) -> None:
        """The same for a comparison, which needs no output and has flags of `merge` that say nothing to it."""
        for name in ("method", "dry_run", "resume"):
            if self.given(name):
                flag = f"--{name.replace('_', '-')}"
                raise OptionError(f"{flag} is of `fxmerge merge`", f"leave out {flag}; --methods names what to compare")
        self.check_files()

    def check_files(self) -> None:
        """Raise `OptionError` or `OutputError` if two of them are one file, or one cannot be written."""
        given = {flag: getattr(self, flag) for flag in ("out", "result", "report", "log") if getattr(self, flag)}
        seen: dict[Path, str] = {Path(parent).resolve(): "a parent" for parent in self.parents}
        for flag, path in given.items():
            where = Path(path).resolve()
            if where in seen:
                raise OptionError(f"--{flag} {path} is {seen[where]} too", "choose another name")
            seen[where] = f"--{flag}"
            if flag == "log" and (self.resume or not Path(path).suffix):
                continue  # what is there already is added to
            check_output(path, overwrite=self.overwrite or self.dry_run)
            if not self.dry_run:
                try_writing(Path(path).parent)


def check_excluding(groups: Iterable[tuple[tuple[str, ...], str]], given: Collection[str]) -> None:
    """Raise `OptionError` for two options that were given of which one would be without effect."""
    for names, why in groups:
        one, two, *_ = [f"--{name.replace('_', '-')}" for name in names if name in given] + ["", ""]
        if two:
            raise OptionError(f"{one} and {two} exclude each other: {why}", "keep one of them")


def no_page() -> OptionError:
    """The error for a report that nobody can draw."""
    return OptionError(
        "a report is drawn by the command line alone", "leave out report, or: fxmerge merge --report FILE"
    )


def option_group(field: FieldInfo) -> str:
    """The heading that an option stands under."""
    return str(_extra(field)["group"])


def _extra(field: FieldInfo) -> dict[str, Any]:
    assert isinstance(field.json_schema_extra, dict)
    return field.json_schema_extra


def _explain(error: ValidationError) -> OptionError:
    """The first thing wrong, in two lines."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][:1])
    if first["type"] == "extra_forbidden":
        todo = "`fxmerge merge --help` lists them all; what only one method has goes into braces: method{option=value}"
        return unknown("option", name, MergeConfig.model_fields, todo)
    field = MergeConfig.model_fields.get(name)
    todo = f"what it is for: {field.description}" if field else "`fxmerge merge --help` lists all options"
    flag, value = f"--{name.replace('_', '-')}", first["input"]
    if first["type"] == "literal_error":
        task = "".join(f"{part}=" for part in first["loc"][1:2] if part)
        given, said = f"{flag} {task}{_as_written(value)}", str(first.get("ctx", {}).get("expected", ""))
        choices = [choice.strip(" '") for choice in said.replace(" or ", ",").split(",")]
        meant = "none" if value is None or value is False else str(value)
        return OptionError(
            f"{given}: no such choice{nearest(meant, choices)}", f"choose one of {', '.join(choices)}; {todo}"
        )
    message = first["msg"][0].lower() + first["msg"][1:]
    return OptionError(f"{flag} {_as_written(value)}: {message}", todo)


def _as_written(value: Any) -> str:
    """A value as YAML has it: null and false, and text without quotes."""
    return json.dumps(value) if value is None or isinstance(value, bool) else printable(str(value))
