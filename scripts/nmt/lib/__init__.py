"""What the translation commands share. Imports fairseq_plugins, never a command."""
