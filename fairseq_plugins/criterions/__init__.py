"""Training criteria, registered with fairseq on import. Imports `losses`, `teachers`, `errors`."""
