"""Models that an institution received: kept, measured on its own records, and used."""
