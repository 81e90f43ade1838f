"""From nothing to a federation by the commands that people type: over IPv6, through a proxy, certificates renewed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.connect_proxy import ConnectProxy, Faults, connect_proxy, proxy_identity
from tests.deploy.conftest import wait_for

from sovfed.federation.host.status import read_status
from sovfed.federation.identity import load_certificate
from sovfed.server.registry import authority, enrolment
from sovfed.server.runs import folders
from sovfed.server.runs.curves import read_rounds
from sovfed.simulations.ports import free_ports

pytestmark = pytest.mark.deploy
LIFE_S = 120.0  # of the second institution's certificate
RECHECK = timedelta(seconds=15)  # after which gate and relay have looked at every certificate again
LOGIN = "ann:s3cret"
RECORDS = ("--data", "none", "--task", "echo", "--allow-plain-updates", "--without-privacy")


@dataclasses.dataclass
class World:
    """A folder with an authority and a running agency, and the proxies that lead to it; `secured` wants TLS itself."""

    folder: Path
    proxy: ConnectProxy
    secured: ConnectProxy
    root: str

    @property
    def agency(self) -> Path:
        return self.folder / "agency"

    def __call__(self, *words: object, code: int = 0) -> str:
        """What `sovfed WORDS` says, both streams; it must exit with `code`."""
        done = subprocess.run(
            command(*words), cwd=self.folder, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == code, f"{words}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def join(self, name: str, *words: object, code: int = 0) -> str:
        way: tuple[str, ...] = ("--proxy", self.proxy.url)
        if name == "hospital-2":
            way = ("--proxy", self.secured.url, "--proxy-ca", "proxy-ca.pem")
        proxy = ("--authority", self.root, *way)
        return self("client", "join", f"{name}.invitation", *RECORDS, *proxy, *words, "--home", name, code=code)


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "sovfed", *map(str, words)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    folder.chmod(0o700)
    names = ("fleet", "enrolment", "lane", "control")
    ports = [f"server.{name}_port={port}" for name, port in zip(names, free_ports(4), strict=True)]
    tls, _ = proxy_identity(folder)
    with connect_proxy(Faults(login=LOGIN, delay_s=0.01)) as proxy, connect_proxy(Faults(login=LOGIN), tls) as secured:
        made = World(folder, proxy, secured, "")
        (folder / "login").write_text(f"{LOGIN}\n")
        made("authority", "init", "--home", "authority", "--name", "Ministry")
        source = f"server.crl_source={folder}/authority/crl.pem"
        made("server", "init", "server.host=::1", "server.names=[::1]", *ports, source, "--home", "agency")
        made("authority", "sign", "agency/identity/server.csr", "--server", "--out", "server.pem", "--yes")
        made("server", "certificate", "server.pem", "authority/root.pem", "authority/crl.pem", "--home", "agency")
        prints = made("server", "fingerprint", "--home", "agency")
        made.root = prints.split()[-1]
        try:
            made("server", "up", "--detach", "--home", "agency")
            yield made
        finally:
            for name in ("hospital-1", "hospital-2"):
                if (folder / name / "status.lock").exists():
                    made("client", "down", "--home", name)
            made("server", "down", "--home", "agency")


def test_one_command_at_each_side(world: World) -> None:
    said = subprocess.Popen(
        command("server", "admit", "hospital-1", "--yes", "--home", "agency"), cwd=world.folder,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for((world.folder / "hospital-1.invitation").exists, "the invitation")
    assert "[::1]:" in json.loads((world.folder / "hospital-1.invitation").read_text())["address"]
    assert "must be int" in world.join("hospital-1", "data.sites=x", code=2)
    refused = world.join("hospital-1", code=4)
    assert "status 407" in refused and "--proxy-login" in refused, "a proxy's refusal is told at once"
    joined = world.join("hospital-1", "--proxy-login", "login")
    out, _ = said.communicate(timeout=60)
    assert said.returncode == 0 and "hospital-1 is admitted" in out
    proofs = ("fleet: [::1]:", "lane: 256 KiB", "roster: hospital-1 is one of 1", "supernode:", "gateway:", "joined: ")
    assert all(line in joined for line in proofs), joined
    assert LOGIN.partition(":")[2] not in (world.folder / "hospital-1" / "client.yaml").read_text()
    assert "joined: hospital-1" in world("client", "join", "--home", "hospital-1"), "again, it proves again"
    assert all(address.startswith("[::1]:") for address in world.proxy.asked)
    found = world("doctor", "--home", "hospital-1")
    assert "answers over mutual TLS, through the proxy" in found
    ours = world("doctor", "--home", "agency")
    assert "the server that runs here has it" in ours and "in use" not in ours


def test_who_waits_is_shown_and_a_home_and_a_command_that_do_not_fit_are_refused(world: World) -> None:
    assert "wrote hospital-2.invitation" in world("server", "admit", "hospital-2", "--no-wait", "--home", "agency")
    assert "hospital-2: invited" in world("server", "status", "--home", "agency")
    wrong = ("client", "join", "hospital-2.invitation", *RECORDS, "--authority", "ab" * 32, "--home", "wrong")
    assert "the authority gave" in world(*wrong, code=3)
    other = ("client", "join", "hospital-2.invitation", "--authority", world.root, "--home", "hospital-1")
    assert "is 'hospital-1', the invitation is for 'hospital-2'" in world(*other, code=3)
    waits = world.join("hospital-2", "--proxy-login", "login", "--timeout", "0.5", code=4)
    assert "the authority has not signed yet" in waits
    shown = world("server", "status", "--home", "agency")
    key = waits.split("our key           SHA-256 ")[1].split()[0]
    assert f"key {key}" in shown and "next: sovfed server admit hospital-2" in shown
    mistaken = ("server", "admit", "hospital-2", "--home", "agency", "--key", "ab" * 32)
    assert "not admitted" in world(*mistaken, code=3)
    elsewhere = ("server", "admit", "hospital-2", "--home", "agency", "--authority", "nowhere")
    assert "sovfed authority sign" in world(*elsewhere)


def test_certificates_end_and_no_round_is_lost(world: World) -> None:
    """The second institution's certificates live so short that one ends, and is renewed, while a run goes on."""
    request = enrolment.wait_for_request(world.agency, "hospital-2", 60)
    pem = authority.sign(world.folder / "authority", request, days=LIFE_S / 86_400)
    drop = world.agency / "registry" / "certificates"
    drop.mkdir(mode=0o700, exist_ok=True)
    (drop / "hospital-2.part").write_bytes(pem)
    (drop / "hospital-2.part").rename(drop / "hospital-2.pem")
    tending = subprocess.Popen(
        command("authority", "tend", "agency", "--every", "1", "--days", LIFE_S / 86_400, "--home", "authority"),
        cwd=world.folder,
    )
    try:
        joined = world("client", "join", "--home", "hospital-2")
        assert "joined: hospital-2" in joined
        assert f"through the proxy 127.0.0.1:{world.secured.port}" in joined, "which itself wants TLS"
        assert len(set(world.secured.asked)) == 3, "enrolment, fleet and lane"
        world(
            "run", "start", "task=echo", "secagg=none", "server.min_cohort=1", "server.start_cohort=2",
            "server.round_deadline_s=60", "rounds=1000", "run_name=endless", "--no-follow",
            "--home", "agency",
        )  # fmt: skip
        world.proxy.faults.delay_s = 0.2  # policies allow 1,000 rounds: they must not be over before the certificate
        run = folders.run_folder(world.agency, "endless")
        wait_for(lambda: len(read_rounds(run)) > 2, "rounds")
        before = [read_status(world.folder / name) for name in ("hospital-1", "hospital-2", "agency")]
        first = load_certificate(world.folder / "hospital-2" / "identity" / "cert.pem")
        wait_for(lambda: datetime.now(UTC) > first.not_valid_after_utc + RECHECK, "the first certificate's end", 300)
        done = len(read_rounds(run))
        wait_for(lambda: len(read_rounds(run)) > done + 3, "rounds after it")
        lines = read_rounds(run)
        assert all(len(line["participants"]) == 2 for line in lines), "a round without one of the two"
        assert [line["round"] for line in lines] == list(range(1, len(lines) + 1))
        after = [read_status(world.folder / name) for name in ("hospital-1", "hospital-2", "agency")]
        assert before == after, "a process was started again"
        renewed = load_certificate(world.folder / "hospital-2" / "identity" / "cert.pem")
        assert renewed.not_valid_after_utc > first.not_valid_after_utc
        world("run", "stop", "endless", "--home", "agency")
    finally:
        tending.terminate()
        tending.wait(30)
