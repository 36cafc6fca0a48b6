"""Images pixel by pixel: digits that scikit-learn carries, and CIFAR-10 in grey where torchvision's files are there.

digits    1,797 images of 8 by 8 pixels in 17 shades; a stand-in for LRA's Image
cifar     LRA's Image: CIFAR-10 in grey, 32 by 32 pixels in 256 shades, from ./data/cifar-10-batches-py
"""

import hashlib
import pickle
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exlstm.data.long_range.contract import ClassTask, Sampled
from exlstm.data.tasks.contract import SplitName

Images = tuple[NDArray[np.int64], NDArray[np.int64]]  # pixels [N, T] and classes [N]
CIFAR = Path("data", "cifar-10-batches-py")  # where torchvision's CIFAR10(root="data") puts it
_LUMA = np.array([0.2989, 0.587, 0.114])  # ITU-R BT.601
_VALIDATION = 5000  # images of CIFAR's training part, as in LRA


@lru_cache(maxsize=1)
def digit_images() -> dict[SplitName, Images]:
    """The digits of scikit-learn by part: tokens of 1 (paper) to 17 (ink), and classes."""
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError as error:
        raise ValueError("the task digits reads its images from scikit-learn; pip install scikit-learn.") from error
    found = load_digits()
    pixels, classes = 1 + found.data.astype(np.int64), found.target.astype(np.int64)
    # a hash of the picture, so that the parts do not depend on the order of the package
    place = np.array([hashlib.blake2b(row.tobytes(), digest_size=1).digest()[0] for row in pixels])
    edges: dict[SplitName, tuple[int, int]] = {"train": (0, 180), "validation": (180, 218), "test": (218, 256)}
    kept = {name: (low <= place) & (place < high) for name, (low, high) in edges.items()}
    return {name: (pixels[inside], classes[inside]) for name, inside in kept.items()}


@lru_cache(maxsize=1)
def _cifar() -> dict[SplitName, Images]:
    if not CIFAR.is_dir():
        raise ValueError(f"there is no folder {CIFAR}; put CIFAR-10 there, as torchvision's CIFAR10('data') does.")

    def read(*names: str) -> Images:
        parts = [pickle.loads((CIFAR / name).read_bytes(), encoding="bytes") for name in names]
        colors_N3P = np.concatenate([part[b"data"] for part in parts]).reshape(-1, 3, 1024)
        grey_NP = np.rint(np.einsum("c,ncp->np", _LUMA, colors_N3P)).astype(np.int64)
        return 1 + grey_NP, np.concatenate([part[b"labels"] for part in parts]).astype(np.int64)

    pixels, classes = read(*(f"data_batch_{number}" for number in range(1, 6)))
    return {
        "train": (pixels[:-_VALIDATION], classes[:-_VALIDATION]),
        "validation": (pixels[-_VALIDATION:], classes[-_VALIDATION:]),
        "test": read("test_batch"),
    }


def _drawn(images: Images, random: np.random.Generator, low: int, high: int) -> Sampled:
    pixels, classes = images
    if not low == high == pixels.shape[1]:
        raise ValueError(f"images have {pixels.shape[1]} pixels, not {low} to {high}; ask for that length.")
    number = int(random.integers(len(pixels)))
    return pixels[number], int(classes[number])


DIGITS = ClassTask(
    name="digits",
    about="handwritten digits of 8 by 8 pixels; in the place of LRA's Image",
    vocab_size=18,
    classes=10,
    sample=lambda split, random, low, high: _drawn(digit_images()[split], random, low, high),
)
CIFAR_GREY = ClassTask(
    name="cifar",
    about="LRA's Image: CIFAR-10 in grey, 1,024 pixels",
    vocab_size=257,
    classes=10,
    sample=lambda split, random, low, high: _drawn(_cifar()[split], random, low, high),
    is_lra=True,
)
