"""One Trainer run, which knows of no federation."""
