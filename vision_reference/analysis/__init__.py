"""What a teacher is like and what it does to a student's features: pictures, numbers, the commands that make them.

Imports `soft_labels`, `images`, `networks`, `machine`, `arguments`, `errors`, `files`, `progress`.
"""
