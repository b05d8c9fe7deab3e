"""Teacher outputs: computed once, kept on disk, named by what they depend on."""
