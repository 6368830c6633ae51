"""The stages of an audit, one file each; they are listed in pyproject.toml."""
