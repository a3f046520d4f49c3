"""Training criteria, registered with fairseq on import."""
