"""An institution's home folder: settings, policy, studies, tasks of its own, and whether all of it holds."""
