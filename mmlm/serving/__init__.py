"""Finished runs for people and programs: what a run can be asked for, demos in a browser, a server."""
