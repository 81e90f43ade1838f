"""Tables of statistics that this institution has received, and its own figures beside them."""
