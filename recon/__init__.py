"""Photos to representations: one file per method, and cameras from photos in `sfm.py`."""
