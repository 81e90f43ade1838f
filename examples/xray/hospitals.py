"""PneumoniaMNIST as hospitals would have it: a folder of PNGs each, with a table that names file and finding.

python examples/xray/hospitals.py pneumoniamnist.npz FOLDER
"""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from sovfed.clients.data.files import read_file
from sovfed.clients.data.pneumoniamnist import MAX_BYTES, SHA256

WORDS: Final = ("normal", "pneumonia")
SHARES: Final = {  # of all normal images, and of all with pneumonia: sizes and case mix differ
    "north": (0.1, 0.4), "east": (0.2, 0.3), "south": (0.3, 0.2), "west": (0.4, 0.1),
}  # fmt: skip
ARRAYS: Final = ("images", "labels")
TEST: Final = "published-test"
Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.uint8]


def read(path: Path) -> tuple[tuple[Images, Labels], tuple[Images, Labels]]:
    """Images [n, 28, 28] and labels [n] to train on, each image once, and the published test's. Raises DataError."""
    with np.load(io.BytesIO(read_file(path, MAX_BYTES, SHA256)), allow_pickle=False) as arrays:
        images, labels = (np.concatenate([arrays[f"{part}_{what}"] for part in ("train", "val")]) for what in ARRAYS)
        test = arrays["test_images"], arrays["test_labels"].ravel()
    _, first = np.unique(images.reshape(len(images), -1), axis=0, return_index=True)
    kept = np.sort(first)
    return (images[kept], labels.ravel()[kept]), test


def prepare(folder: Path, train: tuple[Images, Labels], test: tuple[Images, Labels], seed: int = 0) -> Path:
    """Write a folder for each hospital into `folder`/hospitals, and the test's images beside them; returns `folder`."""
    images, labels = train
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = [order[labels[order] == label] for label in range(len(WORDS))]
    ends = [np.cumsum([0, *(share[label] for share in SHARES.values())]) for label in range(len(WORDS))]
    for number, name in enumerate(SHARES):
        rows = np.concatenate([
            own[round(end[number] * len(own)) : round(end[number + 1] * len(own))]
            for own, end in zip(by_class, ends, strict=True)
        ])  # fmt: skip
        write(folder / "hospitals" / name, images[rows], labels[rows], rows)
    write(folder / TEST, *test, np.arange(len(test[1])))
    return folder


def write(folder: Path, images: Images, labels: Labels, numbers: npt.NDArray[np.int64]) -> None:
    """A PNG for each of `images` [n, height, width], called by its number, and `table.csv`."""
    folder.mkdir(parents=True)
    names = [f"{number:05}.png" for number in numbers]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(folder / name)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "finding"))
        writer.writerows((name, WORDS[label]) for name, label in zip(names, labels, strict=True))


if __name__ == "__main__":
    print(prepare(Path(sys.argv[2]), *read(Path(sys.argv[1]))))
