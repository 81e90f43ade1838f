"""An institution's word on each run: its officers' signatures, its standing consent, and the gate in its trainer."""
