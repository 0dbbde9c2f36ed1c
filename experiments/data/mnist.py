"""MNIST: handwritten digits of 28 x 28 pixels."""

import gzip
import hashlib
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from . import sources


NAME = "mnist"
# With the digests of what is compressed in them.
FILES = {
    "train-images-idx3-ubyte.gz": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    ),
    "train-labels-idx1-ubyte.gz": (
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
    ),
    "t10k-images-idx3-ubyte.gz": (
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
    ),
    "t10k-labels-idx1-ubyte.gz": (
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
    ),
}
TRAINING = 60_000


class ImageData(NamedTuple):
    """Images, with pixels from 0 to 1 in a row, and their classes."""

    train_images: Float[np.ndarray, "train pixels"]
    train_labels: Int[np.ndarray, " train"]
    test_images: Float[np.ndarray, "test pixels"]
    test_labels: Int[np.ndarray, " test"]


def load_mnist() -> ImageData:
    """All of MNIST, with its official split.

    **Raises:**

    `DataUnavailable` if there is neither a folder with the files nor a network, and for
    damaged files.
    """
    paths = sources.find(NAME, list(FILES))
    if paths is not None:
        contents = [
            read_idx(path, digest) for path, digest in zip(paths, FILES.values())
        ]
        train_images, train_labels, test_images, test_labels = contents
    else:
        images, labels = sources.openml(NAME, list(FILES), 554)
        train_images, test_images = np.split(images, [TRAINING])
        train_labels, test_labels = np.split(labels, [TRAINING])
    return ImageData(
        _scaled(train_images),
        train_labels.astype(np.int32),
        _scaled(test_images),
        test_labels.astype(np.int32),
    )


def read_idx(path: Path, digest: str) -> np.ndarray:
    """An array of bytes in the IDX format, compressed.

    **Arguments:**

    - `path`: the file.
    - `digest`: the SHA-256 of what is compressed in it, in hexadecimal digits.

    **Raises:**

    `DataUnavailable` if it is not that.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise sources.damaged(path, f"can't be decompressed ({error})") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise sources.damaged(path, "has another checksum than the official file")
    axes = content[3]
    shape = struct.unpack_from(f">{axes}I", content, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _scaled(images: np.ndarray) -> Float[np.ndarray, "images pixels"]:
    return images.reshape(len(images), -1).astype(np.float32) / 255
