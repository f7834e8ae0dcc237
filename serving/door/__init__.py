"""The door of an engine: one file without dependencies, which runs inside the engine's process."""
