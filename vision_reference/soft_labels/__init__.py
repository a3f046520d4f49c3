"""A teacher's answers, stored once: format, writer, reader, views. Imports images, networks."""
