"""National law by issuing institution: nine Japanese ministries and the Diet, eight German ones and the Bundestag.

A record is a window of text, a person is a document: whatever is promised to a person (the clipping of gradients, the
choice of what is held out) is promised to a document. Documents marked "train" train, those marked "test" are held
out, those marked "valid" are left out, for whoever chooses a setting by them.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from sovfed.clients.data import Connector, Records, require_task, table_of
from sovfed.clients.data.files import read_file
from sovfed.federation.errors import DataError
from sovfed.federation.schema import nearest

if TYPE_CHECKING:
    from sovfed.federation.config import DataConfig
    from sovfed.federation.tasks import Task

SHA256: Final = {
    # Japanese law in force, from e-Gov (CC BY 4.0)
    "cao_npa_cabinet_police": "4fbf981cee1dd8c87dcfea1cf93e3c4022ae7d3b918c1701107202e1daa01eac",
    "diet_acts": "220652b50e92bfa2ea8c168d0750dd212a8f994ca7c115461dcee429580b7869",
    "maff_agriculture": "fc4cc2065fddb3123757c56af2ea76d8635aca7959693445d2012b0963963ce7",
    "meti_economy": "364ef377de923fa277feb4f83e09cbf7543795424e65f197d2a26261479654c4",
    "mext_education": "0aec4f31b57132b4b2908bac227815f0853aa52d8d97c313bfbcc05de15e7aa3",
    "mhlw_health_labour": "71a46c857e540d5ed0158c125540fbe33b1e1fda19529f87767fa63a4cc4f236",
    "mic_interior": "eb95bf32a47a8e8524b243709c17e3ed9503e2e0bd1216042ee79e00be77fb2b",
    "mlit_transport": "9726053c8a723e9c3bdf481516e6e763d7db2b85815a3f7862837f236b8b3cd3",
    "mof_finance": "45a74dca4e0131a79f11a553102361eda1aaf71e6efdab8ee73128dfdbdb2c81",
    "moj_justice": "44b3aa455ef6eb6a578ef623c531b6b23e40f4e88a64f4f057302451250d36f7",
    # German federal law of March 2022 (official works, UrhG § 5)
    "bmas_arbeit": "ab7985311b22b625e789bb30af3a59aa7bea7b21093eb7152a0a00a43939d727",
    "bmel_landwirtschaft": "75a31c5ef424ccb064cbe693c0f7e6b1093f20634c02553f4db0b590a5f77964",
    "bmf_finanzen": "51886dda2b8bfde07b9ee9146f9028e44f065e7f616078201bca9bd610fbfc4d",
    "bmg_gesundheit": "81a2fa9321615b18c00d30e54c89788807fd91ad836bb85fb1094447722ebd3a",
    "bmi_inneres": "a59eb21c11a5c8d9d8d704cd909b6a5706a3fb8d93c3c00cab72494f55099915",
    "bmj_justiz": "b27cd16139115474b2bb065072459789746d356fd7bbf483cfdef1a01fd8bb7c",
    "bmv_verkehr": "d7a9e09d7d44279bae8527e7a37be7d02ba901388850e5fe6e12ada25be5f809",
    "bmwi_wirtschaft": "21f1223ee8bf9b1636f92009e1140e2fb6e90957c1d2798d80e6351a1e2a4722",
    "bundestag_gesetze": "c8fce06393b99064197a77e5d5ff45f439a18ed9404a24bec870d196babd379c",
}
SUFFIX: Final = ".jsonl.xz"
MAX_BYTES: Final = 1 << 24  # of a file
MAX_TEXT: Final = 1 << 26  # of what is in it
MAX_MEMORY: Final = 1 << 27  # bytes that unpacking may take, which the file itself asks for
SPLITS: Final = ("train", "valid", "test")
STRIDE: Final = 64  # from a held-out window to the next: each byte but a document's first ones has as many before it
START: Final = b"\n"  # stands before a document's first byte, and fills up one that is shorter than a window
Windows = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]  # bytes [n, width], and how many of each are given [n]


def load(task: Task, config: DataConfig) -> Records:
    """The documents of ministry `config.site` as windows of bytes; `config.path` is the file or the folder it lies in.

    Every byte of a document is predicted once: a window's label says how many of its bytes another one predicts.
    """
    require_task(task, config.source, "statutes")
    if config.site not in SHA256:
        raise DataError(f"data.site is '{config.site[:64]}'{nearest(config.site, SHA256)}")
    if not config.path:
        raise DataError(f"data.source 'statutes' needs data.path: the folder of the SITE{SUFFIX} files")
    path = Path(config.path).expanduser()
    path = path / f"{config.site}{SUFFIX}" if path.is_dir() else path
    texts = _parse(_unpack(read_file(path, MAX_BYTES, SHA256[config.site]), path), path)
    width = task.schema.inputs[0].size
    parts = {
        name: [cut(text, width, width - 1 if name == "train" else STRIDE) for text in texts[name]] for name in texts
    }
    cuts = [*parts["train"], *parts["test"]]
    windows = np.concatenate([rows for rows, _ in cuts])
    persons = np.repeat(np.arange(len(cuts)), [len(rows) for rows, _ in cuts])
    train = np.arange(len(windows)) < sum(len(rows) for rows, _ in parts["train"])
    window_labels = np.concatenate([labels for _, labels in cuts])
    table = table_of(task.schema, windows, window_labels)
    return Records(table, persons, np.flatnonzero(train), np.flatnonzero(~train))


def sites_in(path: str) -> tuple[str, ...]:
    """The known ministries with a file in folder `path`, or that of the file `path`. Raises DataError."""
    location = Path(path).expanduser()
    names = {entry.name for entry in location.iterdir()} if location.is_dir() else {location.name}
    sites = tuple(site for site in SHA256 if f"{site}{SUFFIX}" in names)
    if not sites:
        raise DataError(f"{location}: no file of a known ministry, such as moj_justice{SUFFIX}")
    return sites


def cut(text: bytes, width: int, stride: int) -> Windows:
    """`text` as windows of `width` bytes, of which a model predicts all but the first from those before.

    Each starts `stride` bytes after the one before it, the last one ends with the text; of what is predicted in a
    window, its number of `given` bytes was so already in an earlier one (or fills up a short text).
    """
    padding = max(len(START), width - len(text))
    padded = np.frombuffer(START * padding + text, np.uint8)
    last = len(padded) - width
    starts = np.append(np.arange(0, last, stride), last)
    ends = starts + width
    predicted_to = np.concatenate([[padding], ends[:-1]])  # bytes that are no longer to be predicted
    return np.lib.stride_tricks.sliding_window_view(padded, width)[starts], predicted_to - starts - 1


def _unpack(content: bytes, path: Path) -> bytes:
    """What is in an .xz file, of at most `MAX_TEXT` bytes. Raises DataError."""
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_MEMORY)
    try:
        text = unpacker.decompress(content, MAX_TEXT + 1)
    except lzma.LZMAError as error:
        raise DataError(f"{path}: not an .xz file, or one that needs over {MAX_MEMORY} bytes of memory") from error
    if len(text) > MAX_TEXT:
        raise DataError(f"{path}: over {MAX_TEXT} bytes once unpacked")
    if not unpacker.eof or unpacker.unused_data:
        raise DataError(f"{path}: {'ends too early' if not unpacker.eof else 'something follows the .xz stream'}")
    return text


def _parse(content: bytes, path: Path) -> dict[str, list[bytes]]:
    """The documents' texts (UTF-8) by split; those that only serve the choice of settings are left out."""
    texts: dict[str, list[bytes]] = {"train": [], "test": []}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            document = json.loads(line)
            split, text = document["split"], document["text"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DataError(f"{path}, line {number}: no JSON object with 'split' and 'text'") from None
        if split not in SPLITS or not isinstance(text, str) or not text:
            raise DataError(f"{path}, line {number}: 'split' is none of {', '.join(SPLITS)}, or 'text' is no text")
        if split in texts:
            try:
                texts[split].append(text.encode())
            except UnicodeEncodeError:
                raise DataError(f"{path}, line {number}: 'text' holds what is no Unicode character") from None
    if not all(texts.values()):
        counts = ", ".join(f"{len(documents)} to {name}" for name, documents in texts.items())
        raise DataError(f"{path}: {counts} documents; need some of both")
    return texts


CONNECTOR: Final = Connector(load, sites=lambda config: sites_in(config.path or ""), task="statutes", reads=())
