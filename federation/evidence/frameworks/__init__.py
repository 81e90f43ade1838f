"""Tables of what frameworks ask and what there is to show for it: a YAML file each, its wording ours."""
