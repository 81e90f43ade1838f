"""Local training at one institution: plain, private, and with what it keeps from round to round."""
