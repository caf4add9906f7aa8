"""Real images for the demo: Fashion-MNIST where it is found, else scikit-learn's digits."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .cache import cache_folder
from .errors import SimMIMError

# Debian's package dataset-fashion-mnist.
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CACHE_FOLDER = cache_folder()
_TRAIN, _TEST = "train", "t10k"
_TEST_SHARE = 5


@dataclass(frozen=True)
class Images:
    """A labelled set of images.

    Attributes:
        name: "Fashion-MNIST" or "digits".
        source: where it was found.
        train: [samples, pixels] float32 in [0, 1].
        train_labels: [samples] int64.
        test: [samples, pixels] float32.
        test_labels: [samples] int64.
        classes: number of classes.
    """

    name: str
    source: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: int = 10


def find_images(data_dir: Path | None = None, *, download: bool = False) -> Images:
    """Fashion-MNIST from ``data_dir``, the system's folder or a download; else digits.

    Args:
        data_dir: folder with the four idx files, plain or .gz, or torchvision's root.
        download: fetch it with torchvision where it is not found, into ``data_dir`` or a cache.

    Raises:
        SimMIMError: ``data_dir`` was given and holds no data set, a file is damaged, or a
            package that is needed is missing.
    """
    candidates = [SYSTEM_FOLDER, CACHE_FOLDER] if data_dir is None else [data_dir]
    for root in candidates:
        for folder in (root, root / "FashionMNIST" / "raw"):
            if _file(folder, _TRAIN, "images-idx3") is not None:
                return _fashion_mnist(folder)
    if download:
        return _fashion_mnist(_download(candidates[-1]))
    if data_dir is not None:
        raise SimMIMError(
            f"--data-dir {data_dir} holds no train-images-idx3-ubyte.gz; name the folder with the "
            "four Fashion-MNIST files, or add --download"
        )
    return _digits()


def read_idx(path: Path) -> Tensor:
    """Reads an idx file of bytes, plain or gzip, as uint8 of the shape that it states.

    Raises:
        SimMIMError: the file is unreadable, no idx file of bytes, or not as long as it says.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise SimMIMError(f"{path} cannot be read: {error}; fetch it again") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise SimMIMError(f"{path} is no idx file of bytes; fetch it again")
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4).tolist()
    start = 4 + 4 * content[3]
    if len(content) - start != int(np.prod(shape)):
        raise SimMIMError(
            f"{path} should hold {int(np.prod(shape))} bytes of data, and holds "
            f"{len(content) - start}; fetch it again"
        )
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def _fashion_mnist(folder: Path) -> Images:
    parts: list[Tensor] = []
    for part in (_TRAIN, _TEST):
        for kind in ("images-idx3", "labels-idx1"):
            path = _file(folder, part, kind)
            if path is None:
                raise SimMIMError(f"{folder} holds no {part}-{kind}-ubyte.gz; fetch it again")
            parts.append(read_idx(path))
    train, train_labels, test, test_labels = parts
    for images, labels in ((train, train_labels), (test, test_labels)):
        if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
            raise SimMIMError(
                f"{folder}: {list(images.shape)} images do not go with {list(labels.shape)} labels"
            )
    return Images(
        "Fashion-MNIST",
        str(folder),
        train.flatten(1).float() / 255,
        train_labels.long(),
        test.flatten(1).float() / 255,
        test_labels.long(),
    )


def _file(folder: Path, part: str, kind: str) -> Path | None:
    for ending in ("ubyte.gz", "ubyte"):
        path = folder / f"{part}-{kind}-{ending}"
        if path.is_file():
            return path
    return None


def _download(root: Path) -> Path:
    try:
        from torchvision.datasets import FashionMNIST
    except (ImportError, RuntimeError) as error:
        raise SimMIMError(
            f"--download needs torchvision ({error}): pip install torchvision"
        ) from error
    try:
        FashionMNIST(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise SimMIMError(
            f"--download failed: {error}; fetch the four files by other means and name their "
            "folder with --data-dir"
        ) from error
    return root / "FashionMNIST" / "raw"


def _digits() -> Images:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SimMIMError(
            "no Fashion-MNIST was found, and the digits need scikit-learn: name a folder with "
            "--data-dir, add --download, or pip install scikit-learn"
        ) from error
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32) / 16
    y = torch.tensor(digits.target, dtype=torch.int64)
    # Every fifth image is a test image: the set is in the order of its writers.
    test = torch.arange(len(x)) % _TEST_SHARE == 0
    return Images("digits", "scikit-learn", x[~test], y[~test], x[test], y[test])
