"""A stock Flower app, run by stock Flower: no module of sovfed imports it, and it imports none of sovfed."""
