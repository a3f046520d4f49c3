"""Experts that run along and experts whose outputs were stored. Imports losses and multilingual."""
