"""`sovfed bundle`: all that a machine without a network needs, in one signed file."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Final

import click

ROLE: Final = click.Choice(["institution", "agency"])
SIGNER: Final = click.option(
    "--signer", type=click.Path(path_type=Path, file_okay=False, exists=True), required=True,
    envvar="SOVFED_SIGNER_HOME", help="Folder of the key that signs (`sovfed task signer`).",
)  # fmt: skip


@click.command()
@click.argument("role", type=ROLE)
@SIGNER
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    help="sovfed's wheel, or the checkout to build it from.",
)
@click.option("--extra", "extras", multiple=True, help="An extra besides the role's, as postgresql or dicom.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path(), help="Folder of the bundle.")
@click.option("--cpu/--cuda", default=True, show_default=True, help="Which build of torch.")
@click.option("--torch-index", help="Where torch without CUDA is.  [default: PyTorch's own; '' = pip's]")
def bundle(
    role: str, signer: Path, source: Path, extras: tuple[str, ...], out: Path, cpu: bool, torch_index: str | None
) -> None:
    """Pack sovfed with all that ROLE needs into one signed .tar for machines without a network.

    It holds what is installed here, in these versions: wheels, checksums, a CycloneDX list of ingredients, and
    install.py, which checks the signature, installs, upgrades and takes back. Install it where Python and system are as
    here.

    \b
    Examples:
      sovfed bundle institution --signer ~/.sovfed/signer --from sovfed-0.1.0-py3-none-any.whl --out /media/stick
      sovfed bundle agency --signer ~/.sovfed/signer --from sovfed-0.1.0-py3-none-any.whl --extra postgresql
      tar xf sovfed-0.1.0-institution-linux_x86_64.tar && cd sovfed-0.1.0-institution-linux_x86_64
      python3 -I install.py install --root root.pem --fingerprint 5f2c… --prefix /opt/sovfed
    """
    from sovfed.federation.archive.signer import load_signer
    from sovfed.federation.bundle import installer
    from sovfed.federation.bundle.making import TORCH_INDEX, build_wheel, make

    key = load_signer(signer)
    with tempfile.TemporaryDirectory(prefix="sovfed-wheel-") as folder:
        wheel = source if source.is_file() else build_wheel(source, Path(folder))
        index = TORCH_INDEX if torch_index is None else torch_index
        path = make(out, role, key, wheel, extras=extras, cpu=cpu, torch_index=index, announce=click.echo)
    click.echo(f"wrote {path} ({path.stat().st_size / 1e6:.0f} MB), signed by {key.identity.person}")
    digest = hashlib.sha256(Path(installer.__file__).read_bytes()).hexdigest()
    click.echo(f"tell who installs it, by another way: the root's fingerprint, and install.py's SHA-256 {digest}")
