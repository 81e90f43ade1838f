"""An institution's secrets for one roster: what setup leaves behind and every round needs.

Immutable. Stored once (0600, by `write_private`), so that a restarted trainer goes on in the same run, and deleted at
its end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from sovfed.federation.secagg import wire
from sovfed.federation.secagg.keys import KEY_BYTES, Named, public_key
from sovfed.federation.secagg.roster import Roster, make_roster
from sovfed.federation.secagg.shares import MAX_HOLDERS


@dataclass(frozen=True)
class Session:
    """`keys[j]` is the key with member j, and `keys[index]` one known to this member alone.

    `upload` authenticates its payloads to the coordinator, against whoever relays them (the gateway included).
    """

    roster: Roster
    index: int
    offer: bytes = field(repr=False)
    ads: tuple[bytes, ...] = field(repr=False)
    keys: tuple[bytes, ...] = field(repr=False)
    upload: bytes = field(repr=False)

    @property
    def name(self) -> str:
        return self.roster.names[self.index]

    def encode(self) -> bytes:
        """The bytes to store; secret."""
        return _Stored(self.index, self.offer, wire.RosterList(self.ads).encode(), self.keys, self.upload).encode()

    @classmethod
    def decode(cls, data: bytes, verify: Callable[[bytes], Named], now: float) -> Self:
        """The session stored earlier, its roster verified anew: a peer revoked or expired since then ends it."""
        stored = _Stored.decode(data)
        listing = wire.RosterList.decode(stored.listing)
        server_key = public_key(wire.Offer.decode(stored.offer).certificate)
        roster = make_roster(stored.offer, listing, verify, now, server_key)
        return cls(roster, stored.index, stored.offer, listing.ads, stored.keys, stored.upload)


@dataclass(frozen=True)
class _Stored(wire.Wire):
    KIND, LIMIT = 64, wire.Offer.LIMIT + wire.RosterList.LIMIT + 64 + (MAX_HOLDERS + 1) * KEY_BYTES
    index: int
    offer: bytes
    listing: bytes
    keys: tuple[bytes, ...]
    upload: bytes

    def body(self) -> bytes:
        listing = wire.number(len(self.listing), 4) + self.listing
        return (
            bytes((self.index, len(self.keys)))
            + b"".join(self.keys)
            + self.upload
            + wire.variable(self.offer)
            + listing
        )

    @classmethod
    def read(cls, reader: wire.Reader) -> Self:
        index, count = reader.number(1), reader.number(1, 1, MAX_HOLDERS)
        keys = tuple(reader.take(KEY_BYTES) for _ in range(count))
        reader.require(index < count, "index out of range")
        upload, offer = reader.take(KEY_BYTES), reader.variable(wire.Offer.LIMIT)
        return cls(index, offer, reader.take(reader.number(4, 1, wire.RosterList.LIMIT)), keys, upload)
