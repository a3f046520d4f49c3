"""One student, many language pairs: language tokens, routes from sentence to expert, options, validation."""
