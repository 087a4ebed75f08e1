"""Refuse `pip install .`: the scripts run from a clone, and `utils` and `datasets` would shadow other packages."""

raise SystemExit("nothing to install: run the scripts from this directory, after pip install -r requirements.txt")
