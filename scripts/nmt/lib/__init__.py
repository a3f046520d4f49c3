"""What the translation commands share. Imports fairseq_plugins and `lib`, never a command."""
