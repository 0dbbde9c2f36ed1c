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


NAME, TRAINING = "mnist", 60_000
# The files, with the digests of their contents before compression.
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


class ImageData(NamedTuple):
    """Images, each a row of pixels from 0 to 1, and their classes."""

    train_images: Float[np.ndarray, "train pixels"]
    train_labels: Int[np.ndarray, " train"]
    test_images: Float[np.ndarray, "test pixels"]
    test_labels: Int[np.ndarray, " test"]


def load_mnist() -> ImageData:
    """Loads all of MNIST, with its official split.

    **Raises:**

    `DataUnavailable` if there is neither a folder with the files nor a network, and for
    damaged files.
    """
    paths = sources.find(NAME, list(FILES))
    if paths is not None:
        arrays = [read_idx(path, digest) for path, digest in zip(paths, FILES.values())]
    else:
        images, labels = sources.openml(NAME, list(FILES), 554)
        split = np.split(images, [TRAINING]), np.split(labels, [TRAINING])
        arrays = [part for pair in zip(*split) for part in pair]
    images = [x.reshape(len(x), -1).astype(np.float32) / 255 for x in arrays[::2]]
    labels = [x.astype(np.int32) for x in arrays[1::2]]
    return ImageData(images[0], labels[0], images[1], labels[1])


def read_idx(path: Path, digest: str) -> np.ndarray:
    """Reads an array of bytes from a compressed file in the IDX format.

    **Raises:**

    `DataUnavailable` if the contents have another digest (SHA-256, of the contents
    before compression).
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
