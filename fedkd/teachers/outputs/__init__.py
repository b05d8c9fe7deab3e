"""Teacher outputs: computed once and stored on disk, under a hash of everything that they depend on."""
