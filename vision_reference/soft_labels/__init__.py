"""A teacher's answers, stored once. Imports `errors`, `files`, `images`, `losses.wide`, `machine`."""
