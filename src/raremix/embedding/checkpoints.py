"""Loads the weights of a local checkpoint into an encoder, whole or not at all.

Trainers wrap the same encoder under many names; the names are matched here. It builds no model.
"""

import argparse
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raremix.data.arrays import read_torch
from raremix.data.kinds import PathLike, file_kind
from raremix.errors import CheckpointMismatchError, FileFormatError

__all__ = ["LoadReport", "load_backbone", "read_weights"]

_NAMED = 3  # names an error or a log shows of a longer list

# Entries of a checkpoint that hold the weights themselves, outermost first.
_WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "backbone")

# What sits on top of an encoder while it is trained, and is of no use without its loss.
_HEAD = re.compile(
    r"^(head|heads|fc|classifier|projector|projection_head|prediction_head|predictor|last_layer"
    r"|prototypes|dino_head|ibot_head|dino_loss)\b"
)


@dataclass(frozen=True)
class LoadReport:
    """What ``load_backbone`` found and did."""

    path: str
    layout: str
    """Where the weights lay, such as ``teacher > module.backbone.``."""
    loaded: int
    """How many tensors were copied into the model."""
    dropped: tuple[str, ...]
    """Keys of the checkpoint that were left out: heads, and networks beside the encoder."""

    def __str__(self) -> str:
        """One line for a log."""
        text = f"{self.loaded} tensors loaded from {self.path} ({self.layout})"
        if not self.dropped:
            return text
        return f"{text}, {len(self.dropped)} left out: {_some(self.dropped)}"


def load_backbone(
    model: nn.Module,
    path: PathLike,
    *,
    which: Literal["teacher", "student"] = "teacher",
    prefix: str | None = None,
) -> LoadReport:
    """Fill an encoder with the weights of a checkpoint file.

    Read are bare state dicts; ones wrapped in ``state_dict``, ``model`` or the like; and full DINO
    checkpoints with ``teacher`` and ``student``. The prefix of the keys (``module.``,
    ``backbone.``, ``module.backbone.``, ``teacher.backbone.``, ``encoder.`` ...) is the one under
    which most names of the model are found; ``_orig_mod.`` of compiled models is ignored
    everywhere. Heads are left out and reported. The model is changed only if every tensor fits.

    Args:
        model: The encoder; its parameters keep their device and dtype.
        path: A file of ``torch.save``. It is opened with ``weights_only=True``; beyond tensors
            only ``argparse.Namespace`` is let in, which DINO saves its arguments as.
        which: Which network, where the checkpoint holds both.
        prefix: The prefix, where the checkpoint holds several encoders of the same names.

    Returns:
        What was found, loaded and left out.

    Raises:
        FileFormatError: If the file is missing, damaged, not of torch, or holds Python objects.
        CheckpointMismatchError: If names or shapes do not fit; the model is then as before.
    """
    place = Path(path)
    wrapped, layout = _unwrap(_read(place), place, which)
    saved = {_plain(key): tensor for key, tensor in wrapped.items()}
    own = {_plain(key): (key, tensor) for key, tensor in model.state_dict().items()}
    found = _find_prefix(saved, own, place, which) if prefix is None else prefix
    layout = f"{layout} > {found}" if found else layout

    inside = {key[len(found) :]: value for key, value in saved.items() if key.startswith(found)}
    fitting = {name: value for name, value in inside.items() if name in own}
    others = [name for name in inside if name not in own]
    unexpected = [name for name in others if not _HEAD.match(name)]
    # Older batch norms did not count their batches, and evaluation does not use the count.
    missing = [
        name for name in own if name not in inside and not name.endswith("num_batches_tracked")
    ]
    misshaped = [
        f"{name} {tuple(value.shape)} for {tuple(own[name][1].shape)}"
        for name, value in fitting.items()
        if value.shape != own[name][1].shape
    ]
    if missing or unexpected or misshaped:
        raise CheckpointMismatchError(
            f"load_backbone cannot load {place} (layout: {layout}) into {type(model).__name__}; "
            "nothing was loaded."
            + _listing("Missing in the file", missing)
            + _listing("Unknown to the model", unexpected)
            + _listing("Other shapes, file for model", misshaped)
            + f" {_advice(missing, unexpected, misshaped)}"
        )
    state: dict[str, Any] = dict(own.values())
    state.update({own[name][0]: value for name, value in fitting.items()})
    model.load_state_dict(state, strict=True)
    used = {found + name for name in fitting}
    return LoadReport(
        path=str(place),
        layout=layout,
        loaded=len(fitting),
        dropped=tuple(key for key in saved if key not in used),
    )


def read_weights(
    path: PathLike, *, which: Literal["teacher", "student"] = "teacher"
) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint by name, without filling any model; see ``load_backbone``.

    Raises:
        FileFormatError: If the file is missing, damaged, not of torch, or holds no weights.
        CheckpointMismatchError: If it holds only the other network.
    """
    place = Path(path)
    found = _unwrap(_read(place), place, which)[0]
    return {_plain(key): tensor for key, tensor in found.items()}


def _read(place: Path) -> Any:
    kind = file_kind(place, caller="load_backbone")
    if kind != "torch":
        raise FileFormatError(
            f"load_backbone expects a checkpoint of torch.save, and {place} is a {kind} file."
        )
    with _namespace_allowed():
        return read_torch(place, caller="load_backbone")


@contextmanager
def _namespace_allowed() -> Iterator[None]:
    """Let ``weights_only=True`` read argparse.Namespace, a bag of names, for a moment."""
    # torch.serialization.safe_globals would do this, from torch 2.5 on.
    before = list(torch.serialization.get_safe_globals())
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        yield
    finally:
        after = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(
            [known for known in after if known is not argparse.Namespace or known in before]
        )


def _unwrap(loaded: Any, place: Path, which: str) -> tuple[dict[str, Tensor], str]:
    """Follow the wrappers down to a dict of tensors; also say which were followed."""
    trail: list[str] = []
    current = loaded
    while isinstance(current, Mapping):
        both = [name for name in ("teacher", "student") if isinstance(current.get(name), Mapping)]
        if both and which not in both:
            raise CheckpointMismatchError(
                f"load_backbone: {place} holds no {which!r}, only {both[0]!r}; "
                f"pass which={both[0]!r}."
            )
        wrappers = [name for name in _WRAPPERS if isinstance(current.get(name), Mapping)]
        if not both and not wrappers:
            tensors = {str(k): v for k, v in current.items() if isinstance(v, Tensor)}
            if tensors:
                return tensors, " > ".join(trail) or "bare state dict"
            break
        step = which if both else wrappers[0]
        trail.append(step)
        current = current[step]
    if isinstance(current, Mapping):
        got = f"a dict with the keys {_some([str(key) for key in current])}"
    else:
        got = f"a {type(current).__name__}"
    raise FileFormatError(
        f"load_backbone finds no weights in {place}: it expects a dict of tensors, also under "
        f"'teacher', 'student', {', '.join(map(repr, _WRAPPERS))}, and got {got}; save "
        "model.state_dict() with torch.save."
    )


def _find_prefix(
    saved: Mapping[str, Tensor],
    own: Mapping[str, tuple[str, Tensor]],
    place: Path,
    which: str,
) -> str:
    """The prefix under which most of the model's names lie in the checkpoint."""
    counts: dict[str, int] = {}
    for key in saved:
        # Every way to cut the key at a dot into prefix and name.
        cuts = [0, *(match.end() for match in re.finditer(r"\.", key))]
        for cut in cuts:
            if key[cut:] in own:
                counts[key[:cut]] = counts.get(key[:cut], 0) + 1
    if not counts:
        return ""
    other = "student" if which == "teacher" else "teacher"
    allowed = {found: n for found, n in counts.items() if other not in re.split(r"[._]", found)}
    if not allowed:
        raise CheckpointMismatchError(
            f"load_backbone: {place} holds no {which!r}, only {other!r} (under "
            f"{_some([repr(found) for found in counts])}); pass which={other!r}."
        )
    most = max(allowed.values())
    best = [found for found, count in allowed.items() if count == most]
    if len(best) > 1:
        best = [found for found in best if which in re.split(r"[._]", found)] or best
    if len(best) > 1:
        raise CheckpointMismatchError(
            f"load_backbone: {place} holds {len(best)} encoders that fit equally well, under "
            f"{_some([repr(found) for found in best])}; pass the one you mean as prefix=."
        )
    return best[0]


def _plain(key: str) -> str:
    return key.replace("_orig_mod.", "")


def _listing(title: str, names: list[str]) -> str:
    return f" {title} ({len(names)}): {_some(names)}." if names else ""


def _some(names: list[str] | tuple[str, ...]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _advice(missing: list[str], unexpected: list[str], misshaped: list[str]) -> str:
    if misshaped and all(name.startswith(("pos_embed", "patch_embed")) for name in misshaped):
        return "Build the model with the patch_size and image_size it was trained with."
    if misshaped or (missing and unexpected):
        return "The checkpoint is of another architecture; build the one it was trained with."
    if missing:
        return "If it was saved under other names, rename its keys or pass prefix=."
    return "Build the model with the parts that the checkpoint has."
