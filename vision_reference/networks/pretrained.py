"""Trained weights by name: torchvision's (ResNet50_Weights.IMAGENET1K_V2), ``timm:NAME``, ``hf://owner/name``.

They are downloaded once into the caches of torch and of the Hugging Face Hub and found there later, without a network
too. Of the Hub only safetensors are read, and the ``config.json`` that timm and ``export.py`` write beside them.
"""

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torchvision.models import WeightsEnum

from vision_reference.errors import UserError
from vision_reference.images.presets import INTERPOLATIONS
from vision_reference.networks import cifar_resnets
from vision_reference.networks.description import Description, from_checkpoint

TIMM, HUB = "timm:", "hf://"
_HUB_NAME = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_IMAGENET = torchvision.models.ResNet18_Weights.IMAGENET1K_V1  # whose words for the classes timm's share
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"

Trained = tuple[dict[str, Tensor], Description]


def is_name(source: str) -> bool:
    """Whether ``source`` names weights rather than a file. Only the form is looked at."""
    return source.startswith((TIMM, HUB)) or ("_Weights." in source and "/" not in source)


def names_its_data(source: str) -> bool:
    """Whether its classes are called as folders are: torchvision's and timm's are ImageNet's words."""
    return not is_name(source) or source.startswith(HUB)


def read(source: str, name: str | None) -> Trained:
    """State dict and description of the weights called ``source``.

    Args:
        name: the network that they are meant for; None: whichever they belong to.

    Raises:
        UserError: there are no such weights, they are of another network, or they cannot be downloaded.
    """
    if source.startswith(TIMM):
        return _timm(source, name)
    if source.startswith(HUB):
        return _hub(source, name)
    weights = find_weights(source)
    name = name or _owner(weights)
    return fetch_weights(weights, name), _describe(weights, name)


def find_weights(name: str) -> WeightsEnum:
    """The torchvision weights called ``name``.

    Raises:
        UserError: torchvision has no such weights.
    """
    try:
        return torchvision.models.get_weight(name)
    except (ValueError, KeyError):
        raise UserError(
            f"torchvision has no weights '{name}'; expected a name such as ResNet50_Weights.IMAGENET1K_V2"
        ) from None


def fetch_weights(weights: WeightsEnum, model_name: str) -> dict[str, Tensor]:
    """State dict of ``weights``, downloaded once and checked by hash.

    Raises:
        UserError: they belong to another network than ``model_name``, or cannot be downloaded.
    """
    if model_name.startswith(TIMM) or model_name in cifar_resnets.NAMES:
        raise UserError(f"{weights} are torchvision's, not weights of {model_name}; give a file")
    owner = torchvision.models.get_model_weights(model_name)
    if weights not in owner:
        raise UserError(f"{weights} are not weights of {model_name}; allowed: {', '.join(str(w) for w in owner)}")
    try:
        return weights.get_state_dict(check_hash=True, progress=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"could not fetch {weights} ({error}); download {weights.url} where there is a network and put it into "
            f"{_torch_cache()}"
        ) from None


def weights_of(name: str) -> str | None:
    """The ImageNet weights of a network by their name, which students may start from; None where there are none."""
    if name.startswith(TIMM):
        return name
    if name not in torchvision.models.list_models(module=torchvision.models):
        return None
    known = list(torchvision.models.get_model_weights(name))
    return str(known[0]) if known else None


def missing(source: str) -> str | None:
    """Why the weights called ``source`` cannot be had here; None where they are in the cache or can be downloaded."""
    if source.startswith(TIMM):
        try:
            import timm
            from huggingface_hub import constants, try_to_load_from_cache
        except ImportError:
            return "timm is not installed"
        config = _timms_weights(timm, source.removeprefix(TIMM))
        if config is None or not config.hf_hub_id:
            return "timm has no such weights"
        url, cache = f"{constants.ENDPOINT}/{config.hf_hub_id}", Path(constants.HF_HUB_CACHE)
        present = isinstance(try_to_load_from_cache(config.hf_hub_id, _WEIGHTS), str)
    else:
        url, cache = find_weights(source).url, _torch_cache()
        present = (cache / Path(url).name).is_file()
    if present or _answers(url):
        return None
    return f"it is not in {cache} and nothing can be downloaded: fetch {url} elsewhere, put it there, and ask again"


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=3):
            return True
    except (OSError, ValueError):
        return False


def _torch_cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _owner(weights: WeightsEnum) -> str:
    """Name of the network that torchvision's ``weights`` are of."""
    models = torchvision.models
    return next(name for name in models.list_models(module=models) if weights in models.get_model_weights(name))


def _describe(weights: WeightsEnum, name: str) -> Description:
    """What torchvision tells of its weights."""
    shown = weights.transforms()
    accuracy = weights.meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
    return Description(
        str(weights),
        arch=name,
        classes=tuple(weights.meta["categories"]),
        preset="imagenet",
        train_crop_size=shown.crop_size[0],
        val_resize_size=shown.resize_size[0],
        val_crop_size=shown.crop_size[0],
        interpolation=shown.interpolation.value,
        mean=tuple(shown.mean),
        std=tuple(shown.std),
        accuracy=accuracy,
    )


def _timm(source: str, name: str | None) -> Trained:
    asked = source.removeprefix(TIMM)
    if name is not None and name.startswith(TIMM) and _untagged(name) != _untagged(source):
        raise UserError(f"{source} are not weights of {name}; name the network {TIMM}{_untagged(source)}")
    try:
        import timm
    except ImportError:
        raise UserError(f"'{source}' needs timm, which is not installed; pip install timm") from None
    if not timm.is_model(asked):
        raise UserError(f"timm has no model '{asked}'; timm.list_models('*resnet*', pretrained=True) finds names")
    config = _timms_weights(timm, asked)
    if config is None:
        known = ", ".join(timm.list_pretrained(f"{_untagged(source)}.*")[:6]) or "none of this network"
        raise UserError(f"timm has no trained weights '{asked}'; it has {known}")
    try:
        network = timm.create_model(asked, pretrained=True)
    except Exception as error:  # no network, an interrupted download, a damaged file: each of its own kind
        if config.hf_hub_id:
            raise _not_fetched(source, config.hf_hub_id, error) from None
        raise UserError(
            f"could not fetch the weights of '{source}' ({_line(error)}); download {config.url} where there is a "
            f"network and put it into {_torch_cache()}"
        ) from None
    shown = timm.data.resolve_data_config({}, model=network)
    words = _IMAGENET.meta["categories"] if network.num_classes == len(_IMAGENET.meta["categories"]) else None
    description = Description(source, arch=name or source, classes=words and tuple(words), **_shown(shown, source))
    return network.state_dict(), description


def _timms_weights(timm, name: str):
    """timm's record of the trained weights of ``name``; None where there are none."""
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # no weights of that tag
        return None
    return config if config is not None and config.has_weights else None


def _untagged(name: str) -> str:
    return name.removeprefix(TIMM).partition(".")[0]


def _shown(config: dict, source: str) -> dict:
    """Sizes, colours and interpolation from timm's configuration, in the words of ``Description``.

    Raises:
        UserError: it says something that cannot be.
    """
    told = {
        "preset": "imagenet",
        "mean": config.get("mean"),
        "std": config.get("std"),
        "interpolation": config["interpolation"] if config.get("interpolation") in INTERPOLATIONS else "bicubic",
    }
    size: Any = config.get("input_size")
    share = config.get("crop_pct") or 0.875
    try:
        crop = int(size[-1])
        told |= {"train_crop_size": crop, "val_crop_size": crop, "val_resize_size": int(crop / float(share))}
    except (TypeError, ValueError, IndexError, KeyError, ZeroDivisionError, OverflowError):
        raise UserError(f"'{source}': its size {size} (share {share}) is none of an image") from None
    checked = from_checkpoint({"model": {}, "description": told}, source)
    return {name: getattr(checked, name) for name in told}


def _hub(source: str, name: str | None) -> Trained:
    from vision_reference.networks import checkpoints  # few need it, and names stand on no higher floor than files

    match = _HUB_NAME.fullmatch(source)
    if not match:
        raise UserError(f"'{source}' is not hf://owner/name or hf://owner/name@revision")
    identifier, revision = match.groups()
    state = checkpoints.load_checkpoint(_hub_file(source, identifier, _WEIGHTS, revision))
    if not isinstance(state, dict) or "model" not in state:  # not an export of ours, which says all of it inside
        config = _read_config(_hub_file(source, identifier, _CONFIG, revision), source)
        state = {"model": state, **config}
    description = from_checkpoint(state, source)
    weights = checkpoints.weights_in(state, None, source=source)
    found = description.arch
    given = name if name is not None and name.startswith(TIMM) else None
    if given and found is not None and _untagged(given) != _untagged(found):
        raise UserError(f"'{source}' holds weights of {found}, not of {name}; name the network {found}")
    return weights, description


def _read_config(path: Path, source: str) -> dict:
    """``arch`` and ``description`` of a checkpoint from the ``config.json`` of timm's networks.

    Raises:
        UserError: it is none.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        arch, shown = str(config["architecture"]), {**config, **config["pretrained_cfg"]}
        names = config.get("label_names")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"'{source}' is no network of timm's or of export.py: its {_CONFIG} does not say architecture and "
            "pretrained_cfg; give a file of weights and --model"
        ) from None
    described = _shown(shown, source)
    classes = [str(one) for one in names] if isinstance(names, list) else None
    if classes is not None and len(set(classes)) < len(classes):
        classes = None
    return {"arch": TIMM + arch, "description": {**described, "classes": classes}}


def _hub_file(source: str, identifier: str, file: str, revision: str | None) -> Path:
    """A file of a repository on the Hub, from the cache or downloaded into it.

    Raises:
        UserError: it cannot be had.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"'{source}' needs huggingface-hub, which is not installed; pip install huggingface-hub"
        ) from None
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.hf_hub_download(identifier, file, revision=revision))
    except Exception as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise UserError(
                f"'{source}' has no {file}; only safetensors with a {_CONFIG} are read from the Hub"
            ) from None
        raise _not_fetched(source, identifier, error) from None


def _not_fetched(source: str, identifier: str, error: Exception) -> UserError:
    """How to get a repository of the Hub onto a machine without a network."""
    from huggingface_hub import constants

    folder = f"models--{identifier.replace('/', '--')}"
    return UserError(
        f"could not fetch '{source}' ({_line(error)}); where there is a network, run huggingface-cli download "
        f"{identifier} {_WEIGHTS} {_CONFIG}, then copy {folder} from its cache into {constants.HF_HUB_CACHE}"
    )


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text[:120] + "..." if len(text) > 120 else text) or type(error).__name__
