"""Models in Hugging Face layout: config.json and weights, from files on this machine alone.

Only model classes of the installed transformers library are built; code that a repository brings, adapters, and
kernels named by a config are never loaded.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from fxmerge.errors import FxmergeError, SourceError
from fxmerge.io.child import ChildError, ask
from fxmerge.io.files import LARGEST_JSON, read_json
from fxmerge.messages import listed, nearest, printable, reason
from fxmerge.samples.images import preprocessing
from fxmerge.samples.pretrained_cfg import asset_of
from fxmerge.sources.bundle import KNOWN_ASSETS
from fxmerge.sources.checkpoint import Checkpoint
from fxmerge.sources.state_dict import read_weights
from fxmerge.sources.tokenizers import TOKENIZER, longest_in, with_longest

CONFIG = "config.json"
MOST_PIXELS = 1 << 24
MOST_SIZE, MOST_ENTRIES = 1 << 40, 1 << 17
COUNTS = re.compile("layers|depth|blocks|experts|stages")
"""Keys of a config that count what is built one by one."""

OLDER, OLDER_SIZE = "fxmerge.samples.workers:older_tokenizer", 1 << 29
OLDER_TOKENIZERS = ("vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")
COUNTER = "num_batches_tracked"
"""How often a batch norm was trained, at the end of the tensor's name: nothing computes with it."""
SINGLE = ("model.safetensors", "pytorch_model.bin")
SHARDED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def read_folder(folder: Path) -> dict[str, Tensor]:
    """The state dict of a folder, its shards joined. Raises `SourceError` if it holds none."""
    for name in (SINGLE[0], SHARDED[0], SINGLE[1], SHARDED[1]):
        if (folder / name).is_file():
            return _read_shards(folder / name) if name in SHARDED else _state(folder / name)
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return _state(others[0])
    raise SourceError(
        f"{folder} has a {CONFIG} but no weights (looked for {listed((*SINGLE, *SHARDED))})",
        "put model.safetensors there, or add --weights FILE",
    )


def names_of(config_file: Path, tensors: int) -> frozenset[str]:
    """What the tensors of the model that a config.json describes are called. Takes no memory for them."""
    return frozenset(name for names in tied_names(config_file, tensors) for name in names)


def tied_names(config_file: Path, tensors: int) -> list[list[str]]:
    """The same, names of one tensor together."""
    config = _config(config_file, tensors)
    with torch.device("meta"), _quiet(library()), _bounded(tensors, config_file):
        try:
            found: dict[int, list[str]] = {}
            model: Any = _model_class(config, config_file)(config)
            held: dict[str, Any] = model.state_dict(keep_vars=True)
            for name, value in held.items():
                source = getattr(model, "all_tied_weights_keys", {}).get(name, name)
                found.setdefault(id(held.get(source, value)), []).append(name)
            return list(found.values())
        except FxmergeError:
            raise
        except Exception as error:  # a config can be wrong in as many ways as there are model classes
            raise SourceError(
                f"{config_file}: the model cannot be built: {reason(error)}", "repair the config"
            ) from error


def build(config_file: Path, state: Mapping[str, Tensor]) -> tuple[nn.Module, tuple[str, ...]]:
    """The model a config.json describes with `state` put in, in float32, and notes. Raises `SourceError`."""
    transformers = library()
    config = _config(config_file, len(state))
    model_class = _model_class(config, config_file)
    with _quiet(transformers):
        try:
            _check_size(model_class, config, state, config_file)
            model, found = model_class.from_pretrained(
                None,
                config=config,
                state_dict=dict(state),
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                attn_implementation=None,
                dtype=torch.float32,
            )
        except FxmergeError:
            raise
        except Exception as error:  # a config can be wrong in as many ways as there are model classes
            raise SourceError(
                f"{config_file}: {model_class.__name__} cannot be built: {reason(error)}", "repair the config"
            ) from error
    if wrong := sorted(str(k) for k in found["mismatched_keys"]):
        raise SourceError(
            f"{config_file}: sizes differ from the weights: {printable(listed(wrong, 3))}",
            "use their own config",
        )
    if missing := sorted(name for name in found["missing_keys"] if not name.endswith(COUNTER)):
        raise SourceError(
            f"the weights lack {len(missing)} tensors of {model_class.__name__}: {listed(missing, 3)}",
            "name the class they were saved from in 'architectures' of the config, or use complete weights",
        )
    for carried in ("use_cache", "use_mems_eval"):  # from one call to the next
        if hasattr(model.config, carried):
            setattr(model.config, carried, False)
    notes = []
    if found["unexpected_keys"]:
        notes.append(
            f"weights not used by {model_class.__name__}: {printable(listed(sorted(found['unexpected_keys']), 3))}"
        )
    if any(t.dtype in (torch.float16, torch.bfloat16) for t in state.values()):
        notes.append("weights in half precision were read as float32")
    return model.eval(), tuple(notes)


def dummy_inputs(model: Any, assets: Mapping[str, bytes] | None = None) -> dict[str, Tensor] | None:
    """Random tokens or images to trace the model with; None if it takes neither.

    Images have the size that the config states, else the one that the preprocessing among the assets makes.
    """
    draw = torch.Generator().manual_seed(0)
    config, takes = model.config, _takes(model)
    vision = getattr(config, "vision_config", None) or config
    main = model.main_input_name
    inputs: dict[str, Tensor] = {}
    if main == "pixel_values":
        size = getattr(vision, "image_size", None) or _prepared_size(assets or {}) or 224
        channels = getattr(vision, "num_channels", 3)
        shape = [channels, *(size if isinstance(size, list | tuple) else (size, size))]
        if len(shape) != 3 or not all(type(n) is int and n > 0 for n in shape) or math.prod(shape) > MOST_PIXELS:
            shown = printable(" x ".join(str(n) for n in shape))
            raise SourceError(f"the model states images of {shown}", "add --inputs FILE with real ones")
        inputs[main] = torch.randn(2, *shape, generator=draw)
    vocabulary = getattr(config.get_text_config(), "vocab_size", None)
    if vocabulary and "input_ids" in takes and (main == "input_ids" or vision is not config):
        longest = getattr(config.get_text_config(), "max_position_embeddings", None)
        length = min(16, longest) if type(longest) is int and longest > 0 else 16
        inputs["input_ids"] = torch.randint(0, vocabulary, (2, length), generator=draw)
        if "attention_mask" in takes and not _generates(model):
            inputs["attention_mask"] = torch.ones(2, length, dtype=torch.long)
        if config.is_encoder_decoder and "decoder_input_ids" in takes:
            inputs["decoder_input_ids"] = torch.randint(0, vocabulary, (2, length), generator=draw)
    return inputs or None


def _prepared_size(assets: Mapping[str, bytes]) -> Any:
    """What images are cut or brought to before a model sees them, as far as its preprocessing says."""
    try:
        said = preprocessing(assets, "the model")
    except SourceError:  # whoever reads images says so
        return None
    cut = said.get("crop_size") if said.get("do_center_crop", True) else None
    size = cut or said.get("size")
    if isinstance(size, dict):
        edge = size.get("shortest_edge")
        size = [size.get("height", edge), size.get("width", edge)]
    known = isinstance(size, int) or (isinstance(size, list) and len(size) == 2 and all(type(n) is int for n in size))
    return size if known else None


def assets_of(folder: Path) -> dict[str, bytes]:
    """The tokenizer and preprocessing files beside a model; older tokenizers in the form of tokenizer.json."""
    files = {name: folder / name for name in KNOWN_ASSETS}
    assets = {n: f.read_bytes() for n, f in files.items() if f.is_file() and f.stat().st_size <= LARGEST_JSON}
    if "tokenizer.json" not in assets and any((folder / name).is_file() for name in OLDER_TOKENIZERS):
        try:
            for _, text in ask(OLDER, {"folder": str(folder.absolute())}, size=OLDER_SIZE):
                assets["tokenizer.json"] = text
        except ChildError:  # then text samples are refused with a message, arrays still work
            pass
    if TOKENIZER in assets:
        assets[TOKENIZER] = with_longest(assets[TOKENIZER], longest_in(folder))
    return {**preprocessing_in(folder / CONFIG), **assets}


def preprocessing_in(config_file: Path) -> dict[str, bytes]:
    """The preprocessing that the config.json of a timm model states, as a preprocessor_config.json."""
    if not config_file.is_file() or config_file.stat().st_size > LARGEST_JSON:
        return {}
    try:
        config = read_json(config_file)
    except SourceError:  # of no use here; whoever needs it says so
        return {}
    return asset_of(config.get("pretrained_cfg")) if isinstance(config, dict) else {}


def labels_of(config_file: Path, classes: int | str) -> tuple[str, ...] | None:
    """Class names a config gives, if there are as many as the model has outputs and they are real names."""
    names = read_json(config_file).get("id2label")
    if not isinstance(names, dict) or len(names) != classes or not all(str(i) in names for i in range(len(names))):
        return None
    texts = [printable(str(names[str(i)])) for i in range(len(names))]
    return None if all(text == f"LABEL_{i}" for i, text in enumerate(texts)) else tuple(texts)


def library() -> Any:
    """The transformers module. Raises `SourceError` if it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise SourceError("transformers is not installed", 'install it: pip install "fxmerge[hub]"') from error
    return transformers


def _config(file: Path, tensors: int) -> Any:
    """The configuration object; settings that would load code or kernels from elsewhere are refused or dropped."""
    values = read_json(file)
    kind = values.get("model_type") if isinstance(values, dict) else None
    if not isinstance(kind, str):
        raise SourceError(f"{file} names no 'model_type'", "give the config.json of a Hugging Face model")
    if "quantization_config" in values:
        raise SourceError(f"{file} describes quantized weights", "give the weights in float16, bfloat16 or float32")
    known = library().CONFIG_MAPPING
    if kind not in known:
        own = " and brings code of its own, which is not run" if "auto_map" in values else nearest(kind, known.keys())
        raise SourceError(
            f"{file}: transformers has no model type {printable(kind)!r}{own}",
            "capture the model where its code is: fxmerge.save(model, 'a.pt', inputs=(x,))",
        )
    for key, value in _entries(values):
        if isinstance(value, list | dict) and len(value) > MOST_ENTRIES:
            raise SourceError(f"{file}: {printable(key)} has {len(value)} entries", "use the weights' own config")
        for number in _integers(value):
            if abs(number) > (max(tensors, 1000) if COUNTS.search(key) else MOST_SIZE):
                raise SourceError(
                    f"{file}: {printable(key)} is {number}, but there are {tensors} tensors",
                    "use the weights' own config",
                )
    plain = {k: v for k, v in values.items() if not k.endswith("_implementation") and k != "auto_map"}
    try:
        return known[kind].from_dict(plain | {"output_hidden_states": False, "output_attentions": False})
    except Exception as error:  # each config class checks its values in its own way
        raise SourceError(f"{file} is not a valid {kind} config: {reason(error)}", "repair the config") from error


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    for key, item in value.items() if isinstance(value, dict) else ():
        yield str(key), item
        yield from _entries(item)


def _integers(value: Any) -> list[int]:
    return [n for n in (value if isinstance(value, list) else [value]) if type(n) is int]


@contextmanager
def _bounded(tensors: int, file: Path) -> Iterator[None]:
    """Stop the building of a model that has many more parameters than there are tensors: each takes time."""
    made = itertools.count()
    most = 4 * tensors + 1000

    def stop(module: nn.Module, name: str, parameter: Any) -> None:
        if next(made) > most:
            raise SourceError(
                f"{file} describes more than {most} tensors, there are {tensors}", "use the weights' own config"
            )

    hook = register_module_parameter_registration_hook(stop)
    try:
        yield
    finally:
        hook.remove()


def _check_size(model_class: Any, config: Any, state: Mapping[str, Tensor], file: Path) -> None:
    """Refuse a config for a far larger model than the weights fill, before memory is taken for it."""
    with torch.device("meta"), _bounded(len(state), file):
        model = model_class(config)
    wanted = sum(t.numel() for t in (*model.parameters(), *model.buffers()))
    given = sum(t.numel() for t in state.values())
    if wanted > 4 * given + (1 << 24):
        raise SourceError(
            f"{file}: sizes differ from the weights: {wanted} parameters, the weights hold {given}",
            "use the weights' own config",
        )


def _model_class(config: Any, file: Path) -> Any:
    transformers = library()
    names = config.architectures if isinstance(config.architectures, list) else []
    found = getattr(transformers, str(names[0]), None) if names else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise SourceError(
            f"{file}: 'architectures' names no model class of transformers ({printable(listed(names))})",
            f'add the class the weights were saved from, as in "architectures": ["{_example(config)}"]',
        )
    return found


def _example(config: Any) -> str:
    return type(config).__name__.removesuffix("Config") + "ForSequenceClassification"


def _read_shards(index: Path) -> dict[str, Tensor]:
    """All tensors an index file lists; shards are files of the same folder, named without a path."""
    found = read_json(index)
    weights = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise SourceError(f"{index} lists no weights", "copy the folder again")
    state: dict[str, Tensor] = {}
    for shard in sorted({str(name) for name in weights.values()}):
        file = index.parent / shard
        if Path(shard).name != shard or not file.is_file():
            raise SourceError(f"{index.parent} lacks the shard {printable(shard)}", "copy the folder again")
        state |= _state(file)
    if missing := [name for name in weights if name not in state]:
        raise SourceError(f"the shards lack {printable(listed(missing, 3))}", "copy the folder again")
    return state


def _state(file: Path) -> dict[str, Tensor]:
    found = read_weights(file)
    assert isinstance(found, Checkpoint)
    return dict(found.largest)


def _takes(model: Any) -> frozenset[str]:
    import inspect

    return frozenset(inspect.signature(model.forward).parameters)


def _generates(model: Any) -> bool:
    """Whether the model predicts each next token: such inputs need no mask, later tokens are hidden anyway."""
    return type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bars and reports of the library while it builds a model."""
    logging = transformers.utils.logging
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
