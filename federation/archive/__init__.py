"""A task as one signed file, NAME-VERSION.sovtask: packed, reviewed, added at each institution, imported from there.

zipped.py     the file: a plain zip of one single form
manifest.py   what it holds and what its task is, in the words that are signed
signing.py    who published and who reviewed it, under the federation's root
packing.py    from a task.yaml, a wheel or a project to such a file
kept.py       unpacked, read-only, every byte checked again
trial.py      its code tried on made-up records, in a process without network and files
loading.py    the one place that imports it
"""
