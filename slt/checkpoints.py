"""Checkpoints in their usual forms → state dicts → a module."""

from __future__ import annotations

import glob
import json
import math
import pickle
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

DISTRIBUTED = ".metadata"  # the file by which a folder of torch.distributed.checkpoint is known
ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
STANDARD_NAMES = ("model.safetensors", "pytorch_model.bin")  # the folder has the step
# what a number in a name counts, the first of these that has one before the others
COUNTED = tuple(
    re.compile(rf"(?i){word}s?[-_=]?(?=\d)") for word in ("step", "iter(?:ation)?", "(?:checkpoint|ckpt)", "epoch")
)
STEPS = re.compile(r"(\d+(?:\.\d+(?=[eEkKM]))?)(?:[eE]\+?(\d{1,2})|([kK])|(M))?(?![A-Za-z\d]|\.\d)")
# of files of one name, which has to say what is counted and nothing else: a number may be that of a seed
FOLDER = re.compile(rf"(?i)(?:global_?)?(?:{'|'.join(pattern.pattern[4:] for pattern in COUNTED)}){STEPS.pattern}")
THOUSANDS = re.compile(
    r"\d{1,3}[_,]\d{3}(?!\d)"
)  # 1_000 may be a thousand, or step 1 of something that is numbered 000
# a whole number by itself, which is no decimal, nor of a word that says what else it counts
NUMBER = re.compile(
    r"(?i)(?:(?<![a-z\d.])|(?<=model)|(?<=weights))(?<!seed[-_=])(?<!rank[-_=])(?<!run[-_=])(?<!fold[-_=])(\d+)(?![a-z\d]|\.\d)"
)
COMPILED_WRAPPER, DISTRIBUTED_WRAPPER = "_orig_mod", "module"  # torch.compile's part of a name, and DDP's
CONTROLS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0e-\x1f\x7f]")  # colours, and what no terminal shows
LONGEST_REASON = 200  # letters
NESTED_KEYS = ("state_dict", "model_state_dict", "model")  # where training scripts keep the weights among other things


def read_state(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a checkpoint, on the CPU.

    Args:
        path: A ``.safetensors`` file; a file written by ``torch.save``, such as Lightning's ``.ckpt``; a Hugging Face
            folder with ``model.safetensors``, ``pytorch_model.bin`` or shards with an index; or a folder written by
            ``torch.distributed.checkpoint``, by however many ranks; torch unpickles the ``.metadata`` of such a folder,
            which runs any code in it: read only those that you trust.

    Returns:
        Parameter and buffer names → tensors.

    Raises:
        FileNotFoundError: There is nothing at the path, or no weights in the folder.
        ValueError: The file cannot be read, holds objects beyond tensors, or no state dict.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: {str(path)!r} does not exist; expected a file or a Hugging Face folder.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_torch(path)


def _read_folder(folder: Path) -> dict[str, Tensor]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_state(folder / name)
    for name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / name).is_file():
            shards = _shards_of(folder / name)
            return {key: tensor for shard in shards for key, tensor in read_state(folder / shard).items()}
    if (folder / DISTRIBUTED).is_file():
        return _read_distributed(folder)
    names = sorted(item.name for item in folder.iterdir())
    series = f" For a sweep over what is in it give {str(folder / '*')!r}." if any(map(_is_named, names)) else ""
    raise FileNotFoundError(
        f"checkpoint: the folder {str(folder)!r} holds {names[:8]}; expected model.safetensors, pytorch_model.bin, an "
        f"index of shards, or .metadata of torch.distributed.checkpoint.{series}"
    )


def _is_named(name: str) -> bool:
    """Whether a name is that of a checkpoint in one file."""
    return name.endswith(ENDINGS)


def _shards_of(index: Path) -> list[str]:
    try:
        shards = set(json.loads(index.read_bytes())["weight_map"].values())
        if not shards or not all(isinstance(shard, str) for shard in shards):
            raise TypeError("weight_map")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"checkpoint: the index {str(index)!r} cannot be read ({type(error).__name__}: {error}); expected JSON "
            "with names of files under 'weight_map'. Is it whole?"
        ) from error
    return sorted(shards)


def _read_distributed(folder: Path) -> dict[str, Tensor]:
    """Whole tensors, in this process, from the shards of all ranks."""
    from torch.distributed.checkpoint.api import CheckpointException  # no Exception, but a BaseException
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with tempfile.TemporaryDirectory() as scratch:
        joined = Path(scratch) / "joined.pt"
        try:
            dcp_to_torch_save(folder, joined)
        except (Exception, CheckpointException) as error:
            raise ValueError(
                f"checkpoint: {str(folder)!r} cannot be read by torch.distributed.checkpoint "
                f"({type(error).__name__}: {str(error)[:200]}). Is it whole?"
            ) from error
        return _read_torch(joined)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        import safetensors
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(
            f"checkpoint: reading {path.name} needs safetensors. Install slt-toolkit[hf], or pip install safetensors."
        ) from error
    try:
        return load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"checkpoint: {str(path)!r} cannot be read as safetensors ({error}). Is it whole?") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"checkpoint: {str(path)!r} holds more than tensors, or is no checkpoint, and was refused: unpickling "
            f"runs code. Save model.state_dict() instead. ({_reason(error)})"
        ) from error
    except Exception as error:
        raise ValueError(
            f"checkpoint: {str(path)!r} cannot be read by torch.load ({_reason(error)}). Is it whole?"
        ) from error
    state = _state_dict_in(loaded)
    if state is None:
        others = _no_tensors(loaded) if isinstance(loaded, Mapping) else []
        beside = f", with {others[0]}" if others else ""
        raise ValueError(
            f"checkpoint: {str(path)!r} holds {type(loaded).__name__}{beside}; expected a state dict, or a dict with "
            f"one under {', '.join(map(repr, NESTED_KEYS))}."
        )
    return state


def _reason(error: Exception) -> str:
    """The sentence of torch's that says why: the first one, or that of its unpickler in the midst of its advice."""
    text = " ".join(CONTROLS.sub("", str(error)).split()).rpartition("WeightsUnpickler error: ")[2]
    sentence = re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0].rstrip(".")
    if len(sentence) > LONGEST_REASON:
        sentence = f"{sentence[:LONGEST_REASON].rsplit(' ', 1)[0]} …"
    kind = "" if isinstance(error, RuntimeError | pickle.UnpicklingError) else type(error).__name__
    return ": ".join(filter(None, (kind, sentence))) or type(error).__name__


def _no_tensors(loaded: Mapping[Any, Any]) -> list[str]:
    """What is no tensor, with its name; but not what modules keep under ``_extra_state``, which may be anything."""
    return [
        f"{type(value).__name__} under {name!r}"
        for name, value in loaded.items()
        if not isinstance(value, Tensor) and str(name).rpartition(".")[2] != "_extra_state"
    ]


def _state_dict_in(loaded: Any) -> dict[str, Tensor] | None:
    if not isinstance(loaded, Mapping):
        return None
    if loaded and not _no_tensors(loaded):
        return dict(loaded)
    return next((state for key in NESTED_KEYS if (state := _state_dict_in(loaded.get(key))) is not None), None)


def load_into(model: nn.Module, path: str | Path) -> None:
    """Load a checkpoint into a module, in place; all of it or nothing.

    Names that are absent are allowed where they are another name of a weight that is there (tied weights). What
    wrappers add to a name does not count, neither in the checkpoint nor in the module: ``_orig_mod`` of
    ``torch.compile``, wherever it stands, and ``module`` of ``DistributedDataParallel``, in front of all names. Nor do
    other parts in front of all names of the checkpoint, such as ``model`` in what a Lightning module saves.

    Args:
        model: The module.
        path: A ``.safetensors`` file, one of ``torch.save``, a Hugging Face folder, or a folder of
            ``torch.distributed.checkpoint``, which may run code when it is read.

    Raises:
        ValueError: Keys, shapes or kinds of numbers do not fit, names that the module ties have other values, or the
            file is refused; the module is then as it was.
        FileNotFoundError: There is nothing at the path, or no weights in the folder.
        ImportError: ``safetensors`` is needed, and not installed.
    """
    load_state(model, read_state(path), str(path))


def load_state(model: nn.Module, state: Mapping[str, Tensor], name: str = "state") -> None:
    """Load a state dict into a module, in place; all of it or nothing. See :func:`load_into`.

    Args:
        model: The module.
        state: Names → tensors.
        name: Of the checkpoint, for messages.

    Raises:
        ValueError: Keys, shapes or kinds of numbers do not fit, or names that the module ties have other values; the
            module is then as it was.
    """
    own = model.state_dict(keep_vars=True)
    state = _by_own_names(state, own)
    tied = {id(own[name]) for name in state if name in own}
    missing = [name for name, value in own.items() if name not in state and id(value) not in tied]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name}: {tuple(state[name].shape)} in the checkpoint, {tuple(own[name].shape)} in the model"
        for name in state
        if all(isinstance(each.get(name), Tensor) for each in (state, own)) and state[name].shape != own[name].shape
    ]
    kinds = [
        f"{name}: {_kind(value)} in the checkpoint, {_kind(own[name])} in the model"
        for name, value in state.items()
        if isinstance(own.get(name), Tensor) and not _of_one_kind(value, own[name])
    ]
    wrong = missing or unexpected or shapes or kinds
    untied = [] if wrong else _untied(state, own)
    if wrong or untied:
        parts = [
            f"{title} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            for title, names in (
                ("missing from the checkpoint:", missing),
                ("unknown to the model:", unexpected),
                ("of other shape:", shapes),
                ("of a kind that would be altered:", kinds),
                ("tied in the model, and not the same in the checkpoint:", untied),
            )
            if names
        ]
        raise ValueError(
            f"checkpoint: {name!r} does not fit {type(model).__name__}; {'; '.join(parts)}. Build the model with "
            "the configuration that it was trained with, or rename the keys."
        )
    model.load_state_dict(state, strict=False)


def _kind(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else type(value).__name__


def _of_one_kind(value: Any, own: Tensor) -> bool:
    """Whether it is a tensor that is not altered but by rounding: no codes as weights, and no lost imaginary part."""
    if not isinstance(value, Tensor):
        return False
    if own.is_complex():
        return value.is_complex() or value.is_floating_point()
    return not value.is_complex() and (value.is_floating_point() or not own.is_floating_point())


def _untied(state: Mapping[str, Tensor], own: Mapping[str, Any]) -> list[str]:
    """Pairs of names that are one tensor of the module and two of the state: the last would overwrite the first."""
    first: dict[int, str] = {}
    pairs = []
    for name, value in state.items():
        other = first.setdefault(id(own[name]), name)
        if other != name and isinstance(value, Tensor):
            one, two = (each.to(own[name].dtype) for each in (state[other], value))
            if not torch.allclose(one, two, rtol=0, atol=0, equal_nan=True):
                pairs.append(f"{other} and {name}")
    return pairs


def _by_own_names(state: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """The state by the names that the module has for it; as it is where not one of them is found to be the same."""
    for names in _shortened(own, (DISTRIBUTED_WRAPPER,)):
        own_names = dict(zip(names, own, strict=True))
        for shorter in _shortened(state):
            if own_names.keys() & set(shorter):
                renamed: dict[str, Tensor] = {}
                first: dict[str, str] = {}
                for short, (name, value) in zip(shorter, state.items(), strict=True):
                    found = own_names.get(short, name)
                    if first.setdefault(found, name) != name:
                        raise ValueError(f"checkpoint: {first[found]!r} and {name!r} are both {found!r} of the model.")
                    renamed[found] = value
                return renamed
    return dict(state)


def _shortened(names: Iterable[str], wrappers: Sequence[str] | None = None) -> Iterator[list[str]]:
    """The names without those of compiled modules; then without the first part, as long as all have the same one.

    Args:
        names: Parts with dots between them.
        wrappers: First parts that may be left out; all by default.

    Yields:
        All names, shorter every time.
    """
    split = [[part for part in name.split(".") if part != COMPILED_WRAPPER] for name in names]
    while True:
        yield [".".join(parts) for parts in split]
        first = {parts[0] for parts in split}
        shared = len(first) == 1 and all(len(parts) > 1 for parts in split)
        if not shared or (wrappers is not None and not first <= set(wrappers)):
            return
        split = [parts[1:] for parts in split]


def step_of(path: str | Path) -> int | None:
    """The training step in a checkpoint's name, or in its folder's where that of the file has none; or None.

    The number after ``step`` counts, or else after ``iter``, ``checkpoint`` or ``ckpt``, or ``epoch``, also as ``10k``,
    ``1.5M`` and ``1e4``; or else the one whole number that stands by itself, and is not of a seed, rank, run or fold. A
    number that may be read in two ways, and one of several that stand by themselves, are no step. A name without any
    number, such as ``weights.pt``, has the step of a folder whose name is that of a step alone.

    >>> step_of("run3/checkpoint-1500/model.safetensors")
    1500
    >>> step_of("step_10/weights.pt"), step_of("1e3.pt")
    (10, 1000)
    >>> step_of("epoch=3-step=100-val_loss=0.32.ckpt")
    100
    >>> step_of("step10k.pt")
    10000
    >>> step_of("resnet18_final.pt"), step_of("2024-05-01.pt"), step_of("step-10.5.pt")
    (None, None, None)

    Args:
        path: Its last part counts, without its ending, or the one before.

    Returns:
        The step.
    """
    path = Path(path)
    name = path.parent.name if path.name in STANDARD_NAMES else (path.stem if path.suffix in ENDINGS else path.name)
    for pattern in COUNTED:
        ends = [found.end() for found in pattern.finditer(name)]
        if ends:
            return _read_number(name[ends[-1] :])
    if STEPS.fullmatch(name):
        return _read_number(name)
    numbers = NUMBER.findall(name)
    if numbers or any(map(str.isdigit, name)):
        return int(numbers[0]) if len(numbers) == 1 else None
    folder = path.parent.name
    return step_of(folder) if FOLDER.fullmatch(folder) else None


def _read_number(text: str) -> int | None:
    """The whole number with which a text begins; None where that is not the only way to read it."""
    found = STEPS.match(text)
    if found is None or THOUSANDS.match(text):
        return None
    digits, exponent, thousands, millions = found.groups()
    value = Fraction(digits) * 10 ** int(exponent or (3 if thousands else 6 if millions else 0))
    return int(value) if value.denominator == 1 else None


def find_checkpoints(pattern: str | Path | Sequence[str | Path]) -> list[Path]:
    """The checkpoints that a glob matches, ordered by step and then by name.

    Args:
        pattern: A glob, in which ``**`` stands for any number of folders, a path, or several of them. A folder that
            holds ``checkpoint-*``, as the Transformers trainer writes them, stands for these.

    Returns:
        At least one path.

    Raises:
        FileNotFoundError: One of them matched nothing.
        ValueError: One of them is neither a text nor a path.
    """
    patterns = [pattern] if isinstance(pattern, str | Path) or not isinstance(pattern, Iterable) else list(pattern)
    wrong = [each for each in patterns if not isinstance(each, str | Path)]
    if wrong:
        raise ValueError(f"checkpoints: {wrong[0]!r}; expected a glob, a path, several of them, or a mapping by step.")
    found: set[Path] = set()
    for each in patterns:
        own = Path(each).expanduser()
        matches = [str(own)] if own.exists() else glob.glob(str(own), recursive=True)
        if not matches:
            special = " Where [, ? or * belongs to a name, give a path of its own, or glob.escape(…)."
            raise FileNotFoundError(
                f"checkpoints: {str(each)!r} matched nothing.{special if glob.has_magic(str(each)) else ''}"
            )
        for match in map(Path, matches):
            inside = list(match.glob("checkpoint-*")) if match.is_dir() else []
            found.update(inside or [match])
    if not found:
        raise FileNotFoundError("checkpoints: an empty list; expected paths or globs.")
    # a name without a step, such as final.pt, comes last
    return sorted(found, key=lambda path: (step if (step := step_of(path)) is not None else math.inf, _natural(path)))


def _natural(path: Path) -> list[str | int]:
    """A key by which run2 comes before run10: texts and numbers in turn."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", str(path)))]
