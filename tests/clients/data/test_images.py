"""A folder of images with a table: decoded when they are asked for, and looked at before."""

from __future__ import annotations

import dataclasses
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from tests.clients.data.cases import AGE, ILL, NAMELESS, task_of

from sovfed.clients.data import load_records, natural_sites, single
from sovfed.clients.data.images import to_predict
from sovfed.clients.data.pictures import look, shape_of
from sovfed.clients.data.survey import report
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import DataError
from sovfed.federation.tasks.columns import NUMBERS, Column

if TYPE_CHECKING:
    from sovfed.federation.tasks import Task

GREY = task_of(Column("scan", "image", shape=(1, 2, 3)), AGE, ILL)
COLOUR = task_of(Column("scan", "image", shape=(3, 2, 3)), ILL)
PIXELS = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40


def _folder(folder: Path, images: dict[str, Any], header: str = "scan,age,ill", rest: str = "50,0") -> DataConfig:
    (folder / "a").mkdir(exist_ok=True)
    for name, pixels in images.items():
        if isinstance(pixels, bytes):
            (folder / name).write_bytes(pixels)
        else:
            Image.fromarray(pixels).save(folder / name, quality=100)
    lines = [f"{name},{rest}" for name in images]
    (folder / "table.csv").write_text("\n".join([header, *lines]))
    return DataConfig(source="images", path=str(folder), person="row")


def test_images_come_with_their_row_when_they_are_asked_for(tmp_path: Path) -> None:
    config = _folder(tmp_path, {f"a/{place}.png": PIXELS + place for place in range(9)})
    records = load_records(GREY, config)
    assert "9 records" in repr(records)
    table = records.take(np.array([7, 0]))
    assert list(table) == [NUMBERS, "scan", "ill"]
    assert table["scan"].dtype == np.uint8
    assert table["scan"][:, 0].tolist() == [(PIXELS + 7).tolist(), PIXELS.tolist()]
    assert table[NUMBERS].tolist() == [[50], [50]]
    assert np.array_equal(records.take(np.arange(9))["scan"][:, 0], np.stack([PIXELS + place for place in range(9)]))
    assert len(records.persons) == len(np.unique(records.persons)) == 9


def test_a_long_or_foreign_name_of_a_file_moves_no_other_row(tmp_path: Path) -> None:
    """Rows without a person are held out by their content, which names that were filled up to one length changed."""
    images = {f"{place}.png": PIXELS + place for place in range(40)}
    alone = load_records(GREY, _folder(tmp_path, images)).train
    together = load_records(GREY, _folder(tmp_path, images | {f"{'long' * 9}-ä.png": PIXELS})).train
    assert np.array_equal(alone, together[together < 40])


def test_colours_stand_before_height_and_width(tmp_path: Path) -> None:
    pixels = np.stack([PIXELS, PIXELS + 1, PIXELS + 2], -1)
    config = _folder(tmp_path, {"x.png": pixels, "y.jpg": np.full((2, 3, 3), 100, np.uint8)}, "scan,ill", "1")
    scans = load_records(COLOUR, config).take(np.array([0, 1]))["scan"]
    assert scans[0].tolist() == [PIXELS.tolist(), (PIXELS + 1).tolist(), (PIXELS + 2).tolist()]
    assert np.abs(scans[1].astype(int) - 100).max() <= 1


def _bomb() -> bytes:
    """A PNG of a few bytes that says it has 60,000 × 60,000 pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


@pytest.mark.parametrize(
    ("name", "pixels", "said"),
    [
        ("x.png", np.zeros((3, 2), np.uint8), r"2 × 3 pixels \(width × height\), expected 3 × 2"),
        ("x.png", np.zeros((2, 3, 3), np.uint8), "colours are 'RGB', expected 1 channels"),
        ("x.png", np.zeros((2, 3), np.uint16), "expected 1 channels of 8 bits"),
        ("x.png", _bomb(), "60000 × 60000|broken|none of"),
        ("x.png", b"GIF89a.......", "none of PNG, JPEG"),
        ("x.png", b"", "0 bytes"),
        ("x.png", b"\x89PNG" + b"\0" * (1 << 23), "8388612 bytes, expected"),
    ],
)  # fmt: skip
def test_an_image_that_does_not_fit_is_refused_before_it_is_decoded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, pixels: Any, said: str
) -> None:
    import re

    config = _folder(tmp_path, {"sound.png": PIXELS, name: pixels})
    with pytest.raises(DataError, match=r"column 'scan': 1 file does not fit \(line 3\)"):
        load_records(GREY, config)
    quarantined = dataclasses.replace(config, bad_rows="quarantine", max_bad_share=0.5)
    records = load_records(GREY, quarantined)
    assert records.take(np.array([0]))["scan"][0, 0].tolist() == PIXELS.tolist()
    assert len(records.persons) == 1
    assert re.search(said, caplog.text)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "link.png", "missing.png", "a", ""])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    inner = tmp_path / "images"
    inner.mkdir()
    Image.fromarray(PIXELS).save(tmp_path / "secret.png")
    (inner / "link.png").symlink_to(tmp_path / "secret.png")
    config = _folder(inner, {"sound.png": PIXELS})
    (inner / "table.csv").write_text(f"scan,age,ill\nsound.png,50,0\n{name},50,1\n")
    with pytest.raises(DataError, match=r"column 'scan': 1 (file does not fit|value is missing)"):
        load_records(GREY, config)


def test_a_file_that_changes_later_is_told(tmp_path: Path) -> None:
    records = load_records(GREY, _folder(tmp_path, {"x.png": PIXELS}))
    (tmp_path / "x.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="an image of column 'scan'"):
        records.take(np.array([0]))


@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
def test_an_image_that_breaks_off_is_a_row_at_fault_when_it_is_loaded(tmp_path: Path, name: str) -> None:
    """Its head is sound. Only its pixels tell, which a round met first: all of the institution's sum was lost."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    task = task_of(Column("scan", "image", shape=(1, 64, 64)), AGE, ILL)
    config = _folder(tmp_path, {"a.png": pixels, name: pixels, "b.png": pixels // 2})
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"column 'scan': 1 file does not fit \(line 3\)"):
        load_records(task, config)
    told = report(task, config)
    assert (told.bad, told.usable) == (1, False)
    assert told.warnings == ("images: a file cannot be decoded to its end (OSError)",)
    records = load_records(task, dataclasses.replace(config, bad_rows="quarantine", max_bad_share=0.5))
    assert np.array_equal(records.take(np.arange(2))["scan"][:, 0], np.stack([pixels, pixels // 2]))


def test_a_table_of_images_without_its_source_is_told_how(tmp_path: Path) -> None:
    _folder(tmp_path, {"x.png": PIXELS})
    csv = DataConfig(source="csv", path=str(tmp_path / "table.csv"), person="row")
    with pytest.raises(DataError, match=r"column 'scan' holds no pixels; .* data\.source=images"):
        load_records(GREY, csv)
    with pytest.raises(DataError, match=r"no folder; name its folder: data\.path=.* data\.table=table\.csv"):
        load_records(GREY, dataclasses.replace(csv, source="images"))


def test_images_to_predict_for_need_no_target_and_keep_their_lines(tmp_path: Path) -> None:
    config = _folder(tmp_path, {"x.png": PIXELS, "broken.png": b"no image", "y.png": PIXELS + 1}, "scan,age", "50")
    read, images = to_predict(GREY.schema, dataclasses.replace(config, bad_rows="quarantine", max_bad_share=0.5))
    assert read.lines is not None and read.lines.tolist() == [2, 4]
    table = images.take(np.array([1]))
    assert list(table) == [NUMBERS, "scan"] and table["scan"][0, 0].tolist() == (PIXELS + 1).tolist()


def test_a_task_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a column of kind image"):
        load_records(NAMELESS, _folder(tmp_path, {"x.png": PIXELS}))


def test_sites_are_folders_with_a_table_each(tmp_path: Path) -> None:
    for site, shift in (("north", 0), ("south", 5)):
        (tmp_path / site).mkdir()
        _folder(tmp_path / site, {"x.png": PIXELS + shift})
    config = DataConfig(source="images", path=str(tmp_path), site="south", person="row")
    assert natural_sites(config) == ("north", "south")
    assert load_records(GREY, config).take(np.array([0]))["scan"][0, 0].tolist() == (PIXELS + 5).tolist()
    assert single(dataclasses.replace(config, path=str(tmp_path / "north")))


def _dicom(path: Path, pixels: Any, **tags: Any) -> None:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 1, 16, 12, 11, 0
    data.PhotometricInterpretation = "MONOCHROME2"
    data.PixelData = pixels.astype("<u2").tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)


def _read(task: Task, config: DataConfig) -> Any:
    return load_records(task, config).take(np.array([0]))["scan"][0, 0].tolist()


def test_dicom_is_rescaled_and_windowed(tmp_path: Path) -> None:
    """By hand: 12 bits to 255 over 4095; a window of 100 ± 100 of value − 1000; MONOCHROME1 the other way round."""
    pytest.importorskip("pydicom", reason="DICOM needs pydicom")
    pixels = np.array([[0, 819, 1638], [2457, 3276, 4095]])
    config = _folder(tmp_path, {"x.dcm": b""})
    _dicom(tmp_path / "x.dcm", pixels)
    assert _read(GREY, config) == [[0, 51, 102], [153, 204, 255]]
    pixels = np.array([[0, 1000, 1040], [1100, 1200, 4095]])
    _dicom(tmp_path / "x.dcm", pixels, WindowCenter=100, WindowWidth=200, RescaleSlope=1, RescaleIntercept=-1000)
    assert _read(GREY, config) == [[0, 0, 51], [128, 255, 255]]
    _dicom(tmp_path / "x.dcm", np.array([[0, 819, 1638], [2457, 3276, 4095]]), PhotometricInterpretation="MONOCHROME1")
    assert _read(GREY, config) == [[255, 204, 153], [102, 51, 0]]
    _dicom(tmp_path / "x.dcm", pixels.T)
    with pytest.raises(DataError, match="1 file does not fit"):
        load_records(GREY, config)


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        (b"US\x02\0", b"US\x00\0"),  # rows of no number
        (b"(\0\x10\0US", b"(\0\x10\0PN"),  # rows that are a person's name
        (b"(\0\x10\0US", b"(\0\x10\0zz"),  # of a type that there is not
        (b"123456", b"1e9999"),
    ],
)
def test_a_dicom_file_that_its_library_cannot_make_sense_of_is_a_row_at_fault(
    tmp_path: Path, tag: bytes, value: bytes
) -> None:
    """Seen: one such file took all of an institution's records out of every sum, private ones too."""
    pytest.importorskip("pydicom", reason="DICOM needs pydicom")
    config = _folder(tmp_path, {"x.dcm": b""})
    _dicom(tmp_path / "x.dcm", np.zeros((2, 3)), RescaleSlope="123456", RescaleIntercept="0")
    content = (tmp_path / "x.dcm").read_bytes()
    assert tag in content
    (tmp_path / "x.dcm").write_bytes(content.replace(tag, value, 1))
    shape_of(tmp_path, "x.dcm")
    with pytest.raises(DataError, match="1 file does not fit"):
        load_records(GREY, config)


def test_a_dicom_file_that_is_deflated_as_a_whole_is_never_unpacked(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom", reason="DICOM needs pydicom")
    _dicom(tmp_path / "x.dcm", np.zeros((2, 3)))
    assert look(tmp_path, "x.dcm", GREY.schema.columns[0]) == ""
    data = pydicom.dcmread(tmp_path / "x.dcm")
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data.ImageComments = "x" * 10_000
    data.save_as(tmp_path / "x.dcm")
    assert (tmp_path / "x.dcm").stat().st_size < 10_000
    assert "deflated as a whole" in look(tmp_path, "x.dcm", GREY.schema.columns[0])
