"""The ``lightning-compress`` command: stages in order, each resumable, and a report at the end."""
