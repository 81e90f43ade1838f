"""A laboratory's own package: one file for each thing that sovfed lets a package bring."""
