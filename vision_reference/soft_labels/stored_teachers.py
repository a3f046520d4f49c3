"""Stored teachers: the stores that a training run learns from, found to be about what it trains on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from vision_reference.errors import UserError
from vision_reference.images.fingerprint import versions
from vision_reference.images.presets import PRESETS
from vision_reference.losses.wide import average
from vision_reference.machine import Rank, gather_objects
from vision_reference.soft_labels.codec import TAILS
from vision_reference.soft_labels.store import Store


@dataclass(frozen=True)
class SoftLabels:
    """The stored teachers of one run: one, or several whose probabilities are averaged.

    Attributes:
        stores: of the same views.
        temperature: T of the distillation.
        tail: one of ``codec.TAILS``.
    """

    stores: Sequence[Store]
    temperature: float
    tail: str

    @property
    def views(self) -> np.memmap:
        """(M, N) records ``seed``, ``box``, ``flip``: what the teachers saw."""
        return self.stores[0].views

    def logits(self, epoch: int, indices: np.ndarray) -> Tensor:
        """Logits (B, K) of the teachers for images ``indices`` (B,) as ``epoch`` shows them: view epoch mod M.

        (B, K + 1) with the tail ``bucket``, see ``codec.decode``.
        """
        view = epoch % len(self.views)
        answers = [store.logits(view, indices, self.temperature, self.tail) for store in self.stores]
        return average(answers, self.temperature)


def open_soft_labels(
    folders: Sequence[Path], *, data: dict, pixels: dict, temperature: float, tail: str | None, rank: Rank
) -> SoftLabels:
    """The stores of ``--soft-labels``, found to be whole and about what this run trains on.

    All bytes are read and compared with their checksums, shared by the processes.

    Args:
        data, pixels: of the run, as ``images.fingerprint`` has them; by every process, another machine may have others.
        temperature, tail: ``--kd-temperature`` and ``--kd-tail``; None where that was not given.

    Raises:
        UserError: a store that is missing, unfinished, damaged, of other data, pixels or views, or without what the
            flags ask for.
    """
    stores = [Store(folder) for folder in folders]
    if not stores:
        raise UserError("--soft-labels needs the folder of a store, or several with commas between them")
    if tail == "bucket" and len(stores) > 1:
        raise UserError("--kd-tail bucket is for one store: several leave out different classes; give uniform or drop")
    for store in stores:
        check_belongs(store, data, pixels)
        _check_labels(store, temperature, tail)
        _check_same_views(stores[0], store)
        share = store.blocks[rank.rank :: rank.world_size]
        if damages := list(filter(None, gather_objects(store.damage(share)))):
            raise UserError(damages[0])
    teachers, count = " and ".join(store.arch for store in stores), stores[0].count
    rank.say(f"soft labels of {teachers}: {count} views of each image; epoch e (from 1) shows view (e - 1) mod {count}")
    now = versions(pixels["loader"])
    for store in stores:
        then = {name: version for name, version in store.versions.items() if version != now.get(name, version)}
        if changes := ", ".join(f"{name} {version} -> {now[name]}" for name, version in then.items()):
            rank.say(f"note: {store.folder} was stored with other versions, pixels may differ: {changes}")
    return SoftLabels(stores, temperature, tail or TAILS[0])


def check_belongs(store: Store, data: dict, pixels: dict) -> None:
    """Refuses a store of other data or pixels than the run's, both as ``images.fingerprint`` describes them.

    Raises:
        UserError: names what differs, stored and given.
    """
    for what, stored in (("classes", store.classes), ("images", store.images)):
        if stored != data[what]:
            hint = "; give --unlabelled and --skip-unreadable as they were then" if what == "images" else ""
            raise UserError(f"{store.folder} is about {stored} {what}, --data-path has {data[what]}{hint}")
    for number, (stored, given) in enumerate(zip(store.class_names or (), data["class_names"], strict=False)):
        if stored != given:
            raise UserError(
                f"{store.folder} calls class {number} '{stored}', --data-path '{given}': the student would learn "
                "answers about other classes; name and order them as they were, or store anew"
            )
    if store.sha256 != data["sha256"]:
        raise UserError(f"{store.folder} is about other data: {data['covers']} differ from those in --data-path")
    for name, given in pixels.items():
        if store.pixels.get(name) != given and not (name == "loader" and _boxes_say_it_all(store.pixels, pixels)):
            flag, then, now = "--" + name.replace("_", "-"), _shown(name, store.pixels), _shown(name, pixels)
            raise UserError(
                f"{store.folder} was stored with {flag} {then}, but {flag} {now} is given; the student must see what "
                "the teacher saw: give the stored value, or store anew"
            )


def _shown(name: str, flags: dict) -> str:
    value = flags.get(name)
    if name in ("mean", "std"):
        return " ".join(f"{part:g}" for part in value) if value else "of the preset"
    return str(value)


def _boxes_say_it_all(stored: dict, given: dict) -> bool:
    """Views stored through torchvision may be shown through DALI where all that happens is to crop and to mirror."""
    preset = PRESETS[given["preset"]]
    more = (preset.shift, preset.rotation, preset.grayscale, preset.brightness, preset.contrast)
    return (stored.get("loader"), given["loader"]) == ("torchvision", "dali") and not any(more)


def _check_same_views(first: Store, second: Store) -> None:
    one, other = ({**store.manifest["views"], **store.pixels} for store in (first, second))
    for name in one:
        if one[name] != other.get(name):
            raise UserError(
                f"{first.folder} and {second.folder} hold different views ({name} {one[name]} and {other.get(name)}): "
                f"store the second with --same-views-as {first.folder}"
            )


def _check_labels(store: Store, temperature: float, tail: str | None) -> None:
    if store.top_k is None:
        if tail:
            raise UserError(f"--kd-tail is about what top-k leaves out, but {store.folder} has all classes; drop it")
    elif temperature not in store.temperatures:
        known = ", ".join(f"{one:g}" for one in store.temperatures)
        raise UserError(
            f"{store.folder} has the {store.top_k} largest logits at temperatures {known}, not at --kd-temperature "
            f"{temperature:g}; choose one of these, or store anew with --temperatures or without --top-k"
        )
