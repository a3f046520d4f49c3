"""A teacher's answers, stored once: format, writer, reader. Imports `images`, `machine`, `errors`, `files`."""
