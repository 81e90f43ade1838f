"""An institution's own page: what left this house."""
