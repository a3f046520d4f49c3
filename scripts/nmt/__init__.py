"""Commands for translation: prepare, train, store, translate, score. Imports its own `nmt.lib`."""
