"""Sites are called as their files are, and institutions by what of it a certificate may bear."""

from __future__ import annotations

from sovfed.federation.certificates import check_institution_name
from sovfed.federation.config import DataConfig
from sovfed.simulations.population import institution_names

SITES = ("köln", "St. Anna Spital", "North_Clinic", "東京", "va", "VA", "0", "x" * 64, "-", "Straße 7", "o\u0308st")


def test_whatever_a_sites_file_is_called_its_institution_has_a_name_of_its_own() -> None:
    names = institution_names([DataConfig(site=site) for site in SITES])
    assert names[:5] == ["koeln", "st-anna-spital", "north-clinic", "hospital-4", "va"]
    assert names[9:] == ["strasse-7", "oest"]
    assert [check_institution_name(name) for name in names] == names
    assert len(set(names)) == len(SITES)
    assert institution_names([DataConfig(site=site) for site in ("hospital-2", "東京")]) == ["hospital-2", "hospital-3"]
