"""Tasks that bring a teacher along; fairseq imports every module in here by itself."""
