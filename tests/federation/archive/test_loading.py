"""What is imported out of an archive comes from its own checked bytes, and takes no other module's place."""

from __future__ import annotations

import json
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest
from tests.packages import NET, TASK, write_wheel

from sovfed.federation.archive.archive import Archive
from sovfed.federation.archive.packing import pack
from sovfed.federation.archive.signer import SigningKey
from sovfed.federation.archive.unpacked import unpack

SCRIPT = """
import json, sys
from pathlib import Path
from sovfed.federation.archive.loading import load_task
from sovfed.federation.errors import ConfigError
told = []
for folder, digests, entry in json.loads(sys.stdin.read()):
    try:
        told.append(load_task(Path(folder), digests, entry).digest)
    except ConfigError as error:
        told.append(str(error))
print(json.dumps([told, sorted(name for name in sys.modules if name.startswith(("wardnet", "json.")))]))
"""


def loaded(*archives: tuple[Path, Archive]) -> tuple[list[str], list[str]]:
    """What a process of its own says when it loads the archives, which are unpacked in the folders, one by one."""
    asked = [(str(folder), archive.manifest.digests, archive.manifest.entry) for folder, archive in archives]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=json.dumps(asked), capture_output=True, text=True, check=True, cwd="/"
    )
    told, modules = json.loads(done.stdout.splitlines()[-1])
    return told, modules


def unpacked(archive: Archive, folder: Path) -> Path:
    folder.mkdir(parents=True)
    unpack(folder, archive.content)
    return folder


def test_the_digest_stands_for_every_byte_of_the_package(
    packed: Archive, publisher: SigningKey, tmp_path: Path
) -> None:
    """A module that `build`'s module imports, and a file of data: the schema and the entry module are the same."""
    assert loaded((unpacked(packed, tmp_path / "first"), packed))[0] == [packed.manifest.digest]
    for number, change in enumerate(({"net": NET + "\n"}, {"hidden": "8\n"}, {"task": TASK + "\n"})):
        other, _ = pack(write_wheel(tmp_path / f"{number}", **change), publisher)
        assert other.manifest.digest != packed.manifest.digest
        assert other.manifest.schema == packed.manifest.schema


def test_a_source_that_changes_after_it_was_checked_is_not_run(packed: Archive, tmp_path: Path) -> None:
    folder = unpacked(packed, tmp_path / "package")
    net = folder / "wardnet" / "net.py"
    net.chmod(0o600)
    net.write_text(NET.replace("tanh", "relu"))
    (told,), modules = loaded((folder, packed))
    assert "changed since it was checked" in told and modules == ["json.decoder", "json.encoder", "json.scanner"]


def test_no_compiled_file_is_read_or_written(packed: Archive, tmp_path: Path) -> None:
    """One that lies there, newer than its source, would run in the source's place."""
    folder = unpacked(packed, tmp_path / "package")
    (tmp_path / "evil.py").write_text("raise SystemExit('the compiled file was run')")
    cache = folder / "wardnet" / "__pycache__"
    (folder / "wardnet").chmod(0o700)
    for name in ("net", "__init__"):
        tag = f"{name}.{sys.implementation.cache_tag}.pyc"
        py_compile.compile(
            str(tmp_path / "evil.py"), str(cache / tag), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )
    before = sorted(folder.rglob("*"))
    assert loaded((folder, packed))[0] == [packed.manifest.digest]
    assert sorted(folder.rglob("*")) == before


def test_a_module_that_lies_beside_the_listed_ones_is_nowhere(publisher: SigningKey, tmp_path: Path) -> None:
    task = TASK.replace(
        "from wardnet.net", "try:\n    import wardnet.more\nexcept ModuleNotFoundError:\n    pass\nfrom wardnet.net"
    )
    archive, _ = pack(write_wheel(tmp_path, task=task), publisher)
    folder = unpacked(archive, tmp_path / "package")
    (folder / "wardnet").chmod(0o700)
    (folder / "wardnet" / "more.py").write_text("raise SystemExit('an unlisted file was run')")
    (told,), modules = loaded((folder, archive))
    assert "more.py: changed since it was checked" in told and "wardnet.more" not in modules


def test_two_versions_of_a_package_are_not_mixed(packed: Archive, publisher: SigningKey, tmp_path: Path) -> None:
    other, _ = pack(write_wheel(tmp_path, hidden="9"), publisher)
    told, _ = loaded((unpacked(packed, tmp_path / "a"), packed), (unpacked(other, tmp_path / "b"), other))
    assert told[0] == packed.manifest.digest
    assert "two versions of a package cannot be used at once" in told[1]
    again, _ = loaded((tmp_path / "a", packed), (unpacked(packed, tmp_path / "c"), packed))
    assert again == [packed.manifest.digest] * 2


def test_a_connector_that_takes_the_place_of_one_that_is_here_is_refused(publisher: SigningKey, tmp_path: Path) -> None:
    from sovfed.federation.errors import ConfigError

    with pytest.raises(ConfigError, match=r"'csv' of sovfed\.connectors: there is one of that name"):
        pack(write_wheel(tmp_path, points="[sovfed.connectors]\ncsv = wardnet:CONNECTOR\n"), publisher)


def test_a_manifest_names_no_module_of_others(packed: Archive, tmp_path: Path) -> None:
    from dataclasses import replace

    folder = unpacked(packed, tmp_path / "package")
    for entry in ("sovfed.federation.tasks.heart:TASK", "os:system", "wardnet_more:TASK"):
        archive = replace(packed, manifest=replace(packed.manifest, entry=entry))
        assert "is in no module of the package" in loaded((folder, archive))[0][0]
