"""Secure aggregation: the coordinator learns the sum over the survivors and nothing else of any institution.

Pairwise and self masks, keyed once per run by certified institutions; every secret is shared among the whole roster,
and a quorum of two thirds takes the place of a consistency round. The protocol, the holes mended and its limits stand
in `docs/secure-aggregation.md`. It has no formal proof.

    setup.py   offer → key advertisement → roster → encapsulations → confirmations     both roles, once per run
    client.py  begin → mask → reveal                                                   the institution, every round
    coordinator.py                                                                     the agency, every round

Pure core: time, randomness, keys and the journal's history are arguments; what must be on disk before a reply leaves is
returned beside the reply, and `journal.py` puts it there.
"""
