"""Commands for translation: prepare, train, store, translate, score."""
